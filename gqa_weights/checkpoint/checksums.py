"""Checksums of tensors: in the manifest of what is written here, and compared with what is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gqa_weights.checkpoint.json_files import LIMIT, Settings
from gqa_weights.checkpoint.pieces import pieces
from gqa_weights.checkpoint.tensors import Array, Checkpoint

KEY = "checksums"
ALGORITHM = "sha256 of the bytes of each tensor, in C order, little-endian"
DIGITS = 64
MOST = LIMIT // 2  # bytes of a manifest that checksums may take: without a limit it could not be read


def checksum(array: Array) -> str:
    """The checksum of one array, in hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces(array):
        digest.update(piece())
    return digest.hexdigest()


def with_checksums(manifest: Settings, found: Mapping[str, str]) -> Settings:
    """A manifest with the checksums of all tensors."""
    return {**manifest, KEY: {"algorithm": ALGORITHM, "tensors": dict(found)}}


def fit(names: Iterable[str]) -> bool:
    """Whether the checksums of so many tensors have a place in a manifest."""
    return sum(len(name) + DIGITS + 8 for name in names) <= MOST


@dataclass(frozen=True)
class Checked:
    """One tensor's checksum: the one that was computed, and that of the manifest, "" for none."""

    name: str
    found: str
    stated: str

    @property
    def differs(self) -> bool:
        return bool(self.stated) and self.found != self.stated


def check(checkpoint: Checkpoint) -> Iterator[Checked]:
    """Read every tensor and compare it with the manifest.

    Args:
        checkpoint: Any checkpoint; one without checksums gives only those that are computed.

    Yields:
        One result for each tensor, and one without a computed checksum for each that only the manifest names.
    """
    stated = _stated(checkpoint.manifest)
    for name in checkpoint:
        yield Checked(name, checksum(checkpoint[name]), stated.get(name, ""))
    for name in stated:
        if name not in checkpoint:
            yield Checked(name, "", stated[name])


def _stated(manifest: Mapping[str, Any]) -> dict[str, str]:
    tensors = manifest.get(KEY, {})
    tensors = tensors.get("tensors", {}) if isinstance(tensors, Mapping) else {}
    return {name: str(digits) for name, digits in tensors.items()} if isinstance(tensors, Mapping) else {}

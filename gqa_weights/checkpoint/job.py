"""What a format needs to write: the tensors, where to, and how one tensor's bytes are streamed."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gqa_weights.checkpoint.atomic import sync
from gqa_weights.checkpoint.checksums import checksum, with_checksums
from gqa_weights.checkpoint.json_files import Settings
from gqa_weights.checkpoint.pieces import pieces
from gqa_weights.checkpoint.tensors import Array, TensorInfo, refuse

Tensor = tuple[str, TensorInfo, Callable[[], Array]]
Piece = tuple[str, Callable[[], memoryview]]

THREADS = 2
AHEAD = 4  # pieces in memory besides the one that is written


@dataclass(frozen=True)
class Job:
    """path: where to write now. final: the path that it is moved to, which messages name. settings: by file name.
    checksums: whether the manifest has those of the tensors; found: those so far. config_file: what a folder calls the
    settings.
    """

    path: Path
    final: Path
    tensors: list[Tensor]
    settings: Mapping[str, Settings]
    shard_bytes: int
    done: Callable[[int], None]
    checksums: bool = False
    found: dict[str, str] = field(default_factory=dict)
    config_file: str = "config.json"

    def read(self, tensor: Tensor) -> Array:
        name, info, read = tensor
        array = read()
        if (array.shape, array.dtype.name) != (info.shape, info.dtype):
            got = f"{array.dtype.name} {array.shape}"
            raise refuse(self.final, name, f"expected {info.dtype} {info.shape} to write, got {got}")
        return array

    def read_whole(self, tensor: Tensor) -> Array:
        """For a format whose package writes whole arrays."""
        array = self.read(tensor)
        if self.checksums:
            self.found[tensor[0]] = checksum(array)
        return array

    def write(self, file: IO[bytes], tensors: Iterable[Tensor]) -> None:
        """Their bytes, one tensor after the other; the checksum of a piece is computed while it is written."""
        tensors = list(tensors)
        digests = {name: hashlib.sha256() for name, _, _ in tensors if self.checksums}
        named = ((tensor[0], piece) for tensor in tensors for piece in pieces(self.read(tensor)))
        with ThreadPoolExecutor(1) as digesting:
            for name, piece in _ahead(named):
                digested = digesting.submit(digests[name].update, piece) if self.checksums else None
                file.write(piece)
                self.done(len(piece))
                if digested is not None:
                    digested.result()
        self.found.update((name, digest.hexdigest()) for name, digest in digests.items())

    def stated(self) -> Mapping[str, Settings]:
        """The settings, with the checksums that were found in the manifest."""
        if not self.checksums:
            return self.settings
        return {**self.settings, "gqa_manifest": with_checksums(self.settings["gqa_manifest"], self.found)}


def _ahead(named: Iterable[Piece]) -> Iterator[tuple[str, memoryview]]:
    """What the functions give, computed by threads a few ahead of the one that is written, the next tensor's too."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[str, Future[memoryview]]] = deque()
        for name, piece in named:
            waiting.append((name, pool.submit(piece)))
            if len(waiting) > AHEAD:
                name, computed = waiting.popleft()
                yield name, computed.result()
        while waiting:
            name, computed = waiting.popleft()
            yield name, computed.result()


def write_settings(job: Job) -> None:
    for name, content in job.stated().items():
        write_json(job.path / (job.config_file if name == "config" else f"{name}.json"), content)


def write_json(path: Path, content: Settings) -> None:
    path.write_text(json.dumps(content, indent=2))
    sync(path)

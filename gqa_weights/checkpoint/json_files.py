"""JSON files beside the tensors: config.json, gqa_manifest.json and the index of shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.tensors import reading

Settings = Mapping[str, Any]

LIMIT = 8 * 10**6  # bytes of settings: as objects in memory they take up to 25 times as many
INDEX_LIMIT = 16 * 10**6  # of an index of shards and of a safetensors header, which name every tensor
DIGITS = 19  # an integer of more is none of 64 bits


def parse(text: str | bytes, limit: int = LIMIT) -> dict[str, Any]:
    """A JSON object whose names are all different; ValueError for anything else.

    An integer of more than 64 bits is read as a decimal number, which no setting that counts accepts.
    """
    check_size(len(text), limit)
    parsed = json.loads(text, object_pairs_hook=_all_different, parse_int=_integer)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a JSON object, got {type(parsed).__name__}")
    return parsed


def read(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """{} if there is no such file."""
    with reading(path):
        if not is_file(path, within=path.parent):
            return {}
        check_size(path.stat().st_size, limit)
        return parse(path.read_bytes(), limit)


def check_size(nbytes: int, limit: int = LIMIT) -> None:
    """ValueError for settings that are too large to be any, before they are read."""
    if nbytes > limit:
        raise ValueError(f"expected at most {limit:,} bytes, got {nbytes:,}")


def pair(get: Callable[[str], Any]) -> tuple[Any, Any]:
    """The settings and the manifest of a checkpoint, each by its name."""
    return get("config"), get("gqa_manifest")


def _integer(digits: str) -> int | float:
    if len(digits) <= DIGITS + 1 and -(2**63) <= int(digits) < 2**63:
        return int(digits)
    return float(digits)


def _all_different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("one name is given twice in a JSON object")
    return parsed

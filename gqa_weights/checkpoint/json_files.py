"""JSON files beside the tensors: config.json, gqa_manifest.json and the index of shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint.tensors import reading

Settings = Mapping[str, Any]

LIMIT = 100_000_000  # as safetensors limits its headers


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object whose names are all different; ValueError for anything else."""
    parsed = json.loads(text, object_pairs_hook=_all_different)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a JSON object, got {type(parsed).__name__}")
    return parsed


def read(path: Path) -> dict[str, Any]:
    """{} if there is no such file."""
    with reading(path):
        if not path.is_file():
            return {}
        if path.stat().st_size > LIMIT:
            raise ValueError(f"expected at most {LIMIT} bytes, got {path.stat().st_size}")
        return parse(path.read_bytes())


def pair(get: Callable[[str], Any]) -> tuple[Any, Any]:
    """The settings and the manifest of a checkpoint, each by its name."""
    return get("config"), get("gqa_manifest")


def _all_different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("one name is given twice in a JSON object")
    return parsed

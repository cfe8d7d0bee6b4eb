"""A path -> a checkpoint: one file by its suffix, or a folder by what lies in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gqa_spec.weights.checkpoint import readers
from gqa_spec.weights.checkpoint.tensors import Checkpoint, Contents, Entry, reading, refuse

Reader = Callable[[Path], Contents]

FORMATS: dict[str, Reader] = {
    ".safetensors": readers.safetensors,
    ".gguf": readers.gguf,
}
JSON_LIMIT = 100_000_000  # as safetensors limits its headers


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a file or of a folder, under the names that it gives them; their data stays on the disk.

    Raises CheckpointError for a path that does not exist or holds no known format, and for a file that is truncated,
    corrupt or contradicts itself.
    """
    path = Path(path)
    with reading(path):
        return Checkpoint(path, _folder(path) if path.is_dir() else _file(path))


def _file(path: Path) -> Contents:
    if path.suffix not in FORMATS:
        raise refuse(path, None, f"expected a folder or a file {', '.join(FORMATS)}, got suffix {path.suffix!r}")
    if not path.is_file():
        raise refuse(path, None, "no such file")
    with reading(path):
        return FORMATS[path.suffix](path)


def _folder(path: Path) -> Contents:
    for name, read in FOLDERS.items():
        if (path / name).exists():
            contents = read(path / name)
            settings, manifest = (_json(path / f"{name}.json") for name in ("config", "gqa_manifest"))
            return Contents(contents.format, contents.entries, settings, manifest)
    raise refuse(path, None, f"expected a folder that holds one of {', '.join(FOLDERS)}")


def _json(path: Path) -> dict[str, Any]:
    with reading(path):
        if not path.is_file():
            return {}
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"expected at most {JSON_LIMIT} bytes, got {path.stat().st_size}")
        return readers.parse_json(path.read_bytes())


def _sharded(read: Reader, index: Path) -> Contents:
    """The tensors that an index lists, in its order, each from the file beside it that it names."""
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refuse(index, None, "expected a weight_map from names of tensors to names of files")
    shards: dict[str, Contents] = {}
    entries: dict[str, Entry] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard or "\\" in shard:
            raise refuse(index, name, f"expected the name of a file in the same folder, got {shard!r}")
        if shard not in shards:
            shards[shard] = _shard(read, index.parent / shard, index, name)
        if name not in shards[shard].entries:
            raise refuse(index.parent / shard, name, f"{index.name} says that it is here, but it is not")
        entries[name] = shards[shard].entries[name]
    return Contents(shards[shard].format, entries)


def _shard(read: Reader, path: Path, index: Path, tensor: str) -> Contents:
    if not path.is_file():
        raise refuse(path, tensor, f"no such file, although {index.name} names it")
    with reading(path):
        return read(path)


FOLDERS: dict[str, Reader] = {
    "model.safetensors.index.json": partial(_sharded, readers.safetensors),
    "model.safetensors": _file,
}

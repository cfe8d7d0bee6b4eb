"""A path -> a checkpoint: one file by its suffix, or a folder by its contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint import json_files as settings
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.formats import gguf as format_gguf
from gqa_weights.checkpoint.formats import meta as format_meta
from gqa_weights.checkpoint.formats import npz as format_npz
from gqa_weights.checkpoint.formats import orbax as format_orbax
from gqa_weights.checkpoint.formats import safetensors as format_safetensors
from gqa_weights.checkpoint.formats import torch as format_torch
from gqa_weights.checkpoint.no_weights import BEGINNING, said
from gqa_weights.checkpoint.tensors import SETTINGS_ALONE, Checkpoint, Contents, Entry, reading, refuse

Reader = Callable[[Path], Contents]

LISTED = 3  # files of a folder that a message names

FORMATS: dict[str, Reader] = {
    ".safetensors": format_safetensors.read,
    ".gguf": format_gguf.read,
    ".npz": format_npz.read,
    **dict.fromkeys((".pt", ".pth", ".bin"), format_torch.read),
}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a file or of a folder, under the names that it gives them; their data stays on the disk.

    Args:
        path: A file .safetensors, .gguf, .npz, .pt, .pth or .bin; or a folder that holds model.safetensors,
            pytorch_model.bin, either one's index and shards, Mistral's consolidated.safetensors, Meta's
            consolidated.00.pth, or what orbax writes. A folder of config.json alone has settings and no tensors.

    Returns:
        The checkpoint; each tensor is read from the disk on access.

    Raises:
        CheckpointError: For a path that does not exist or holds no known format, and for a file that is truncated,
            corrupt or contradicts itself.
    """
    path = Path(path)
    with reading(path):
        return Checkpoint(path, _folder(path) if path.is_dir() else _file(path))


def _file(path: Path) -> Contents:
    if not is_file(path):
        raise refuse(path, None, "no such file or folder")
    if path.suffix not in FORMATS:
        raise refuse(path, None, f"expected a folder or a file {', '.join(FORMATS)}, got suffix {path.suffix!r}")
    return _read(FORMATS[path.suffix], path)


def _read(reader: Reader, path: Path) -> Contents:
    with reading(path):
        with path.open("rb") as file:
            reason = said(file.read(BEGINNING))
        if reason is not None:
            raise refuse(path, None, reason)
        return reader(path)


def _folder(path: Path) -> Contents:
    for name, read in FOLDERS.items():
        if is_file(path / name, within=path):
            contents = read(path / name)
            return Contents(contents.format, contents.entries, *_beside(path, prefer_params=name in CONSOLIDATED))
    config, manifest = _beside(path, prefer_params=False)
    if config:
        return Contents(SETTINGS_ALONE, {}, config, manifest)
    raise refuse(path, None, f"expected a folder that holds one of {expected_in(path)}")


def expected_in(path: Path) -> str:
    """The files that are read in a folder without any of them, and those that it has under other names."""
    suffixes = {*FORMATS, ".ocdbt"}
    there = sorted(file.name for file in path.iterdir() if file.suffix.lower() in suffixes)
    return ", ".join(FOLDERS) + (f"; got {', '.join(map(repr, there[:LISTED]))}" if there else "")


def _beside(path: Path, *, prefer_params: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Settings and manifest of a folder: of consolidated files, which Mistral's repositories hold beside Hugging
    Face's, the settings are params.json.
    """
    config, manifest = settings.pair(lambda name: settings.read(path / f"{name}.json"))
    params = settings.read(path / "params.json") if prefer_params or not config else {}
    return params or config, manifest


def _sharded(read: Reader, index: Path) -> Contents:
    """The tensors that an index lists, in its order, each from the file beside it that it names."""
    places = settings.read(index, settings.INDEX_LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refuse(index, None, "expected a weight_map from names of tensors to names of files")
    shards: dict[str, Contents] = {}
    entries: dict[str, Entry] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\0" in shard or "\\" in shard:
            raise refuse(index, name, f"expected the name of a file in the same folder, got {shard!r}")
        if shard not in shards:
            shards[shard] = _shard(read, index.parent / shard, index, name)
        if name not in shards[shard].entries:
            raise refuse(index.parent / shard, name, f"{index.name} places it here, but it is not")
        entries[name] = shards[shard].entries[name]
    return Contents(shards[shard].format, entries)


def _shard(read: Reader, path: Path, index: Path, tensor: str) -> Contents:
    if not is_file(path, within=path.parent):
        raise refuse(path, tensor, f"no such file, although {index.name} names it")
    return _read(read, path)


CONSOLIDATED = ("consolidated.safetensors", "consolidated.00.pth")
# In the order of transformers, which takes the first that it finds (modeling_utils._get_resolved_checkpoint_files).
FOLDERS: dict[str, Reader] = {
    "model.safetensors": _file,
    "model.safetensors.index.json": partial(_sharded, format_safetensors.read),
    "pytorch_model.bin": _file,
    "pytorch_model.bin.index.json": partial(_sharded, format_torch.read),
    "consolidated.safetensors": _file,
    "consolidated.00.pth": partial(_read, format_meta.read),
    "_METADATA": format_orbax.read,
    **dict.fromkeys(("default/_METADATA", "state/_METADATA", "pytree/_METADATA"), format_orbax.read),
}

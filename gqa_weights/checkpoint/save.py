"""Checkpoints written as they are computed: one tensor in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from gqa_spec import checks
from gqa_weights.checkpoint.atomic import ready, replacing, sync
from gqa_weights.checkpoint.checksums import fit
from gqa_weights.checkpoint.formats import gguf_writer as format_gguf
from gqa_weights.checkpoint.formats import npz as format_npz
from gqa_weights.checkpoint.formats import orbax as format_orbax
from gqa_weights.checkpoint.formats import safetensors as format_safetensors
from gqa_weights.checkpoint.job import Job, Tensor
from gqa_weights.checkpoint.json_files import Settings
from gqa_weights.checkpoint.open import FORMATS
from gqa_weights.checkpoint.tensors import refuse

WRITERS: dict[str, Callable[[Job], None]] = {
    "safetensors": format_safetensors.write,
    "npz": format_npz.write,
    "gguf": format_gguf.write,
    "orbax": format_orbax.write,
}
SHARD_BYTES = 5 * 10**9
FILES = {".safetensors": "safetensors", ".npz": "npz", ".gguf": "gguf"}
NO_FILES: Mapping[str, bytes | Path] = MappingProxyType({})


def save_checkpoint(
    path: str | Path,
    tensors: Iterable[Tensor],
    *,
    format: str = "safetensors",
    settings: Settings | None = None,
    manifest: Settings | None = None,
    settings_file: str = "config.json",
    shard_bytes: int | None = None,
    force: bool = False,
    checksums: bool = False,
    files: Mapping[str, bytes | Path] = NO_FILES,
    done: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write a checkpoint, one tensor in memory at a time.

    The path appears or changes in one step, when everything is written and on the disk: a process that is stopped
    leaves what was there before. What it had written is removed by the next process that writes to the path.

    Args:
        path: The file or folder to write.
        tensors: Of each tensor its name, its shape and dtype, and a function that returns the array, called once.
        format: "safetensors" writes one file if the path ends in .safetensors, else a folder as Hugging Face has them:
            model.safetensors, or shards and their index. "npz" and "gguf" write one file. "orbax" writes a folder, with
            the names split at their dots.
        settings: config.json in a folder; a single file carries it inside. Of a GGUF: its fields.
        manifest: gqa_manifest.json, likewise.
        settings_file: The name of the settings in a folder, "config.json" or "params.json".
        shard_bytes: The most bytes of a shard of a safetensors folder; 5 GB when None.
        force: Overwrite a checkpoint at the path: what the new one replaces, by name, at the top level of a folder.
            All other files stay. The file or folder keeps its mode and owner.
        checksums: Put the checksum of each tensor into the manifest, where one is given.
        files: Other files of a folder, such as a tokenizer: the content, or the file to copy, by name.
        done: Called with the number of bytes of each piece that was written.

    Raises:
        CheckpointError: Before anything is written, if the path exists and `force` is not given, if it is a mount
            point, if the disk has too little space or its folder may not be written; later, if an array differs from
            its TensorInfo or the disk is full. Nothing is left behind.
        ValueError: For an unknown format.
    """
    path, tensors = Path(path), list(tensors)
    checks.choice("format", format, tuple(WRITERS))
    checks.choice("settings_file", settings_file, ("config.json", "params.json"))
    shard_bytes = SHARD_BYTES if shard_bytes is None else shard_bytes
    checks.integer("shard_bytes", shard_bytes, at_least=1)
    _check_suffix(path, format)
    _check(path, tensors)
    beside = {"config": settings, "gqa_manifest": manifest}
    given = {name: content for name, content in beside.items() if content is not None}
    if files and path.suffix in FILES:
        raise refuse(path, None, f"a single file has no place for {', '.join(files)}")
    summed = checksums and manifest is not None and fit(name for name, _, _ in tensors)
    with replacing(path, force=force, folder=is_folder(path, format), nbytes=_nbytes(tensors, files)) as temporary:
        WRITERS[format](Job(temporary, path, tensors, given, shard_bytes, done, summed, config_file=settings_file))
        for name, content in files.items():
            _write_file(temporary / name, content)


def check_place(
    path: str | Path,
    tensors: Iterable[Tensor],
    *,
    format: str = "safetensors",
    force: bool = False,
    files: Mapping[str, bytes | Path] = NO_FILES,
) -> None:
    """Raise what `save_checkpoint` would raise before it writes; nothing is written.

    Raises:
        CheckpointError: As `save_checkpoint`.
    """
    path, tensors = Path(path), list(tensors)
    _check_suffix(path, format)
    _check(path, tensors)
    with ready(path, force=force, folder=is_folder(path, format), nbytes=_nbytes(tensors, files)):
        pass


def shard_names(tensors: Iterable[Tensor], path: str | Path, shard_bytes: int | None) -> list[str]:
    """The names of the files of weights, as far as this project names them: orbax names its own."""
    path = Path(path)
    if path.suffix in (*FILES, ".orbax"):
        return [path.name]
    return list(format_safetensors.shards(list(tensors), shard_bytes or SHARD_BYTES))


def is_folder(path: Path, format: str) -> bool:
    """Whether a checkpoint of that format at that path is a folder."""
    return format not in ("npz", "gguf") and path.suffix not in FILES


def _nbytes(tensors: list[Tensor], files: Mapping[str, bytes | Path]) -> int:
    return sum(info.stored_bytes for _, info, _ in tensors) + sum(map(_size, files.values()))


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _write_file(path: Path, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    sync(path)


def _check_suffix(path: Path, format: str) -> None:
    """A folder whose name ends as a file of another format would not be found again."""
    if path.suffix in FORMATS and FILES.get(path.suffix) != format:
        expected = f"a folder, or a file {' or '.join(FILES)}"
        raise refuse(path, None, f"expected {expected}, to write {format}, got suffix {path.suffix!r}")


def _check(path: Path, tensors: list[Tensor]) -> None:
    seen = set()
    for name, info, _ in tensors:
        if name in seen:
            raise refuse(path, name, "given twice to write")
        if info.dtype not in format_safetensors.CODES:
            raise refuse(path, name, f"expected a dtype of {', '.join(format_safetensors.CODES)}, got {info.dtype}")
        seen.add(name)

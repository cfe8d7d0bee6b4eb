"""Checkpoints written as they are computed: one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from gqa_spec import checks
from gqa_weights.checkpoint.atomic import replacing
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
    "orbax": format_orbax.write,
}
FILES = {".safetensors": "safetensors", ".npz": "npz"}


def save_checkpoint(
    path: str | Path,
    tensors: Iterable[Tensor],
    *,
    format: str = "safetensors",
    settings: Settings | None = None,
    manifest: Settings | None = None,
    shard_bytes: int = 5 * 10**9,
    force: bool = False,
    done: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write a checkpoint, one tensor in memory at a time.

    The path appears or changes in one step, when everything is written and on the disk: a process that is stopped
    leaves what was there before. Files of an overwritten folder that are no part of a checkpoint are kept.

    Args:
        path: The file or folder to write.
        tensors: Of each tensor its name, its shape and dtype, and a function that returns the array, called once.
        format: "safetensors" writes one file if the path ends in .safetensors, else a folder as Hugging Face has them:
            model.safetensors, or shards and their index. "npz" writes one file. "orbax" writes a folder, with the names
            split at their dots.
        settings: config.json in a folder; a single file carries it inside.
        manifest: gqa_manifest.json, likewise.
        shard_bytes: The most bytes of a shard of a safetensors folder.
        force: Overwrite a checkpoint at the path.
        done: Called with the number of bytes of each piece that was written.

    Raises:
        CheckpointError: If the path exists and `force` is not given, if an array differs from its TensorInfo and if
            the disk is full. Nothing is left behind.
        ValueError: For an unknown format.
    """
    path, tensors = Path(path), list(tensors)
    checks.choice("format", format, tuple(WRITERS))
    checks.integer("shard_bytes", shard_bytes, at_least=1)
    _check_suffix(path, format)
    _check(path, tensors)
    beside = {"config": settings, "gqa_manifest": manifest}
    given = {name: content for name, content in beside.items() if content is not None}
    with replacing(path, force) as temporary:
        WRITERS[format](Job(temporary, path, tensors, given, shard_bytes, done))


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

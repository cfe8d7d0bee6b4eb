"""Checkpoints written as they are computed: one tensor in memory at a time, under a temporary name until complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from gqa_spec import checks
from gqa_spec.weights.checkpoint.readers import SAFETENSORS
from gqa_spec.weights.checkpoint.replace import replacing
from gqa_spec.weights.checkpoint.tensors import Array, TensorInfo, refuse

Tensor = tuple[str, TensorInfo, Callable[[], Array]]
Settings = Mapping[str, Any]

CHUNK = 2**22
CODES = {dtype: code for code, dtype in SAFETENSORS.items()}


@dataclass(frozen=True)
class _Job:
    """path: where to write now. final: where it will stand, which is what messages name."""

    path: Path
    final: Path
    tensors: list[Tensor]
    settings: Settings | None
    manifest: Settings | None
    shard_bytes: int
    done: Callable[[int], None]

    def write(self, file: IO[bytes], tensor: Tensor) -> None:
        name, info, read = tensor
        array = read()
        if (array.shape, array.dtype.name) != (info.shape, info.dtype):
            raise refuse(
                self.final, name, f"expected {info.dtype} {info.shape} to write, got {array.dtype.name} {array.shape}"
            )
        for piece in _pieces(array):
            file.write(piece)
        self.done(info.nbytes)


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
    """Write each tensor, (name, shape and dtype, function that gives the array); each function is called once, in turn.

    format "safetensors" writes one file if the path ends in .safetensors, else a folder as Hugging Face has them:
    model.safetensors, or shards of at most `shard_bytes` and their index; config.json from `settings` and
    gqa_manifest.json from `manifest`. A single file carries both inside. `done` is told the bytes of each tensor.

    The path appears or changes in one step, when everything is written and on the disk: a process that is stopped
    leaves what was there before. Files of an overwritten folder that are no part of a checkpoint are kept.

    Raises CheckpointError if the path exists and `force` is not given, if an array is not what its TensorInfo says
    and if the disk is full, and leaves nothing behind; ValueError for an unknown format.
    """
    path, tensors = Path(path), list(tensors)
    checks.choice("format", format, tuple(WRITERS))
    checks.integer("shard_bytes", shard_bytes, at_least=1)
    _check(path, tensors)
    with replacing(path, force) as temporary:
        WRITERS[format](_Job(temporary, path, tensors, settings, manifest, shard_bytes, done))


def _check(path: Path, tensors: list[Tensor]) -> None:
    seen = set()
    for name, info, _ in tensors:
        if name in seen:
            raise refuse(path, name, "given twice to write")
        if info.dtype not in CODES:
            raise refuse(path, name, f"expected a dtype of {', '.join(CODES)} to write, got {info.dtype}")
        seen.add(name)


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes in C order, little-endian. A transposed view is copied piece by piece: no second whole array, and each
    piece stays in the processor's cache, which makes the copy several times as fast.
    """
    little = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    rows = np.atleast_1d(array)
    step = max(1, CHUNK // max(1, rows.itemsize * prod(rows.shape[1:])))
    for start in range(0, len(rows) if rows.size else 0, step):
        yield np.ascontiguousarray(rows[start : start + step], little).reshape(-1).view(np.uint8).data


def _synced(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _json(path: Path, content: Settings) -> None:
    _synced(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


# --- safetensors ---------------------------------------------------------------------------------------------------


def _safetensors(job: _Job) -> None:
    if job.final.suffix == ".safetensors":
        texts = {"config": job.settings, "gqa_manifest": job.manifest}
        extra = {name: json.dumps(content) for name, content in texts.items() if content is not None}
        _safetensors_file(job, job.path, job.tensors, extra)
        return
    job.path.mkdir()
    shards = _shards(job.tensors, job.shard_bytes)
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        _safetensors_file(job, job.path / name, tensors, {})
        places |= {tensor[0]: name for tensor in tensors}
    for name, content in (("config", job.settings), ("gqa_manifest", job.manifest)):
        if content is not None:
            _json(job.path / f"{name}.json", content)
    if len(shards) > 1:
        total = sum(info.nbytes for _, info, _ in job.tensors)
        _json(job.path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _shards(tensors: list[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor[1].nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor[1].nbytes
    return shards


def _safetensors_file(job: _Job, path: Path, tensors: list[Tensor], extra: dict[str, str]) -> None:
    """Written here because the package wants all tensors in memory at once. The format: the length of a JSON header in
    8 bytes, the header, the data without gaps. Wider items first, as the package has it, so that all are aligned.
    """
    tensors = sorted(tensors, key=lambda tensor: -np.dtype(tensor[1].dtype).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **extra}}
    start = 0
    for name, info, _ in tensors:
        end = start + info.nbytes
        header[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            job.write(file, tensor)

    _synced(path, write)


WRITERS: dict[str, Callable[[_Job], None]] = {"safetensors": _safetensors}

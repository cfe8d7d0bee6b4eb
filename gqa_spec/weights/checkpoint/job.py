"""What a format needs to write: the tensors, where to, and how one tensor's bytes are streamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from gqa_spec.weights.checkpoint.settings import Settings
from gqa_spec.weights.checkpoint.tensors import Array, TensorInfo, refuse

Tensor = tuple[str, TensorInfo, Callable[[], Array]]

CHUNK = 2**25  # bytes that are written at once
BLOCK = 2**16  # elements


@dataclass(frozen=True)
class Job:
    """path: where to write now. final: where it will stand, which is what messages name. settings: by file name."""

    path: Path
    final: Path
    tensors: list[Tensor]
    settings: Mapping[str, Settings]
    shard_bytes: int
    done: Callable[[int], None]

    def read(self, tensor: Tensor) -> Array:
        name, info, read = tensor
        array = read()
        if (array.shape, array.dtype.name) != (info.shape, info.dtype):
            got = f"{array.dtype.name} {array.shape}"
            raise refuse(self.final, name, f"expected {info.dtype} {info.shape} to write, got {got}")
        return array

    def write(self, file: IO[bytes], tensor: Tensor) -> None:
        for piece in _pieces(self.read(tensor)):
            file.write(piece)
        self.done(tensor[1].nbytes)


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes in C order, little-endian; of a transposed view only one piece at a time is copied."""
    little = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    rows = np.atleast_1d(array)
    step = max(1, CHUNK // max(1, rows.itemsize * prod(rows.shape[1:])))
    for start in range(0, len(rows) if rows.size else 0, step):
        piece = rows[start : start + step]
        if not piece.flags.c_contiguous or piece.dtype != little:
            source, piece = piece, np.empty(piece.shape, little)
            _copy(source, piece)
        yield piece.reshape(-1).view(np.uint8).data


def _copy(source: Array, target: Array) -> None:
    """In blocks that fit the processor's cache with their source: a transposed copy is eight times as fast for it."""
    if source.size <= BLOCK:
        target[...] = source
        return
    axis = int(np.argmax(source.shape))
    middle = source.shape[axis] // 2
    for half in (slice(None, middle), slice(middle, None)):
        part = (*[slice(None)] * axis, half)
        _copy(source[part], target[part])


def synced(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def write_settings(job: Job) -> None:
    for name, content in job.settings.items():
        write_json(job.path / f"{name}.json", content)


def write_json(path: Path, content: Settings) -> None:
    synced(path, lambda file: file.write(json.dumps(content, indent=2).encode()))

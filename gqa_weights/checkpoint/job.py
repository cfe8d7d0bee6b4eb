"""What a format needs to write: the tensors, where to, and how one tensor's bytes are streamed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from gqa_weights.checkpoint.atomic import sync
from gqa_weights.checkpoint.json_files import Settings
from gqa_weights.checkpoint.tensors import Array, TensorInfo, refuse

Tensor = tuple[str, TensorInfo, Callable[[], Array]]

CHUNK = 2**23  # bytes that are written at once
BLOCK = 2**19  # bytes that are transposed at once
ROW_PADDING = 16  # numbers between the rows of such a block
THREADS = 2
AHEAD = 4  # pieces in memory besides the one that is written


@dataclass(frozen=True)
class Job:
    """path: where to write now. final: the path that it is moved to, which messages name. settings: by file name."""

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

    def write(self, file: IO[bytes], tensors: Iterable[Tensor]) -> None:
        """Their bytes in C order, little-endian, one tensor after the other."""
        for piece in _ahead(piece for tensor in tensors for piece in _pieces(self.read(tensor))):
            file.write(piece)
            self.done(len(piece))


def _pieces(array: Array) -> Iterator[Callable[[], memoryview]]:
    """One function for each piece of the bytes. Of a transposed view it copies the piece."""
    little = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    rows = np.atleast_1d(array)
    step = max(1, CHUNK // max(1, rows.itemsize * prod(rows.shape[1:])))
    for start in range(0, len(rows) if rows.size else 0, step):
        yield partial(_contiguous, rows[start : start + step], little)


def _ahead(pieces: Iterable[Callable[[], memoryview]]) -> Iterator[memoryview]:
    """What the functions give, computed by threads a few ahead of the one that is written, the next tensor's too."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[memoryview]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(piece))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _contiguous(source: Array, dtype: np.dtype) -> memoryview:
    target = source
    if not source.flags.c_contiguous or source.dtype != dtype:
        source = _merged(source)
        target = np.empty(source.shape, dtype)
        _copy(source, target)
    return target.reshape(-1).view(np.uint8).data


def _merged(array: Array) -> Array:
    """The same numbers in the same order with as few axes as the strides allow: then the blocks of a copy are squares,
    also where heads are an axis of their own.
    """
    shape, strides = [1], [0]
    for count, stride in zip(array.shape, array.strides, strict=True):
        if shape[-1] == 1 or strides[-1] == count * stride:
            shape[-1], strides[-1] = shape[-1] * count, stride
        elif count != 1:
            shape.append(count)
            strides.append(stride)
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def _copy(source: Array, target: Array) -> None:
    """In blocks that fit the processor's cache, each read in memory order, then transposed from rows with padding: rows
    that are a power of two apart, as those of most matrices, would evict each other from the cache.
    """
    if source.nbytes > BLOCK:
        axis = source.shape.index(max(source.shape))
        middle = source.shape[axis] // 2
        for half in (slice(None, middle), slice(middle, None)):
            part = (*[slice(None)] * axis, half)
            _copy(source[part], target[part])
        return
    order = np.argsort(source.strides)[::-1]
    ordered = source.transpose(order)
    rows = np.empty((*ordered.shape[:-1], ordered.shape[-1] + ROW_PADDING), source.dtype)[..., :-ROW_PADDING]
    rows[...] = ordered
    target[...] = rows.transpose(np.argsort(order))


def write_settings(job: Job) -> None:
    for name, content in job.settings.items():
        write_json(job.path / f"{name}.json", content)


def write_json(path: Path, content: Settings) -> None:
    path.write_text(json.dumps(content, indent=2))
    sync(path)

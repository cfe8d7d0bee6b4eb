"""The bytes of an array in C order, little-endian, in pieces: a transposed view is copied one piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import numpy as np

from gqa_weights.checkpoint.tensors import Array

CHUNK = 2**23  # bytes of a piece
BLOCK = 2**19  # bytes that are transposed at once
ROW_PADDING = 16  # numbers between the rows of such a block


def pieces(array: Array) -> Iterator[Callable[[], memoryview]]:
    """One function for each piece, so that several may be computed at once."""
    little = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    rows = np.atleast_1d(array)
    step = max(1, CHUNK // max(1, rows.itemsize * prod(rows.shape[1:])))
    for start in range(0, len(rows) if rows.size else 0, step):
        yield partial(_contiguous, rows[start : start + step], little)


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

"""GGUF, through the package of that name; quantized tensors are dequantized as they are read."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, refuse


def read(path: Path) -> Contents:
    from gguf import GGUFReader

    class Reader(GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Array) -> None:
            """A plain view: to take one of a memmap's hundred thousand strings costs three times as much."""
            self._plain = np.asarray(mapped)

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Array:
            """The package's own returns fewer values at the end of the file: a list of a false length never ends."""
            if not 0 <= offset <= offset + int(count) * np.dtype(dtype).itemsize <= self.data.size:
                raise ValueError(f"{count} values of {np.dtype(dtype)} at byte {offset} end past the file")
            return super()._get(offset, dtype, count, override_order)

    with np.errstate(all="ignore"):
        reader = Reader(path)
    _no_overlap(path, reader.tensors)
    entries = {tensor.name: _entry(path, tensor, reader.byte_order) for tensor in reader.tensors}
    return Contents("gguf", entries, {name: field.contents() for name, field in reader.fields.items()})


def _no_overlap(path: Path, tensors: list[Any]) -> None:
    spans = sorted((int(t.data_offset), int(t.n_bytes), t.name) for t in tensors if t.n_bytes)
    for (start, size, name), (next_start, _, other) in pairwise(spans):
        if start + size > next_start:
            raise refuse(path, name, f"its bytes overlap those of {other!r}")


def _entry(path: Path, tensor: Any, byte_order: str) -> Entry:
    shape, kind = tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name
    if tensor.data.dtype != np.uint8:
        plain = tensor.data.dtype.newbyteorder("=")
        return Entry(path, TensorInfo(shape, plain.name), partial(np.array, tensor.data, plain, subok=False))
    if byte_order != "I":
        raise refuse(path, tensor.name, f"{kind} in the other byte order cannot be read")
    if kind == "BF16":
        return Entry(path, TensorInfo(shape, "bfloat16"), partial(_bfloat16, tensor))
    return Entry(path, TensorInfo(shape, "float32", kind), partial(_dequantized, tensor))


def _bfloat16(tensor: Any) -> Array:
    return np.array(tensor.data, subok=False).view("bfloat16")


def _dequantized(tensor: Any) -> Array:
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a damaged scale is data too: inf and NaN are what it gives
        return np.array(dequantize(tensor.data, tensor.tensor_type), subok=False)

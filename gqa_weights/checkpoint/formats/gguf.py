"""GGUF, through the package of that name; quantized tensors are dequantized as they are read.

The fields are read here: the package makes an array object of each value in them, 340 bytes for a value of one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gqa_weights.checkpoint.files import kept_open, mapped, viewed
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, refuse

MOST_TENSORS = 2**17  # in a file; the package keeps about a kilobyte of each
ALIGNMENT = "general.alignment"
BLOCK = 2**20  # stored bytes that are dequantized at once
MOST_VALUES = 2**21  # in all fields of a file; a vocabulary and its merges are less than half of it


def read(path: Path) -> Contents:
    reader_class = _reader()
    with np.errstate(all="ignore"):
        reader = reader_class(path)
    _no_overlap(path, reader.tensors)
    file = kept_open(path)
    entries = {tensor.name: _entry(path, file, tensor, reader.byte_order) for tensor in reader.tensors}
    return Contents("gguf", entries, reader.values)


def _reader() -> type:
    """The package's reader with bounds on all that it reads. A function, because the package may be missing."""
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderField

    class Reader(GGUFReader):
        values: dict[str, Any]

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, memmap: Array) -> None:
            """A plain view: a slice of it takes a third of the time of a memmap's."""
            self._plain = np.asarray(memmap)

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Array:
            """The package's own returns fewer values at the end of the file: a list of a false length never ends."""
            if not 0 <= offset <= offset + int(count) * np.dtype(dtype).itemsize <= self.data.size:
                raise ValueError(f"{count} values of {np.dtype(dtype)} at byte {offset} end past the file")
            return super()._get(offset, dtype, count, override_order)

        def _build_fields(self, offs: int, count: int) -> int:
            fields = _Fields(self._get, self.gguf_scalar_to_np)
            offs = fields.read(offs, count)
            self.values = {name: field.contents() for name, field in self.fields.items()}
            repeated = next((name for name in fields.values if name in self.values), None)
            if repeated is not None:
                raise ValueError(f"field {repeated!r} is given twice")
            self.values |= fields.values
            if ALIGNMENT in fields.values:  # which the package reads on
                stored = np.array([fields.values[ALIGNMENT]], np.uint32)
                self.fields[ALIGNMENT] = ReaderField(offs, ALIGNMENT, [stored], [0], [fields.kinds[ALIGNMENT]])
            return offs

        def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[Any]]:
            if count > MOST_TENSORS:
                raise ValueError(f"expected at most {MOST_TENSORS:,} tensors, got {count:,}")
            return super()._build_tensor_info(offs, count)

    return Reader


class _Fields:
    """The key-value fields of a file as plain values. get: the values of a dtype at a byte, within the file."""

    def __init__(self, get: Callable[..., Array], dtypes: Mapping[Any, Any]) -> None:
        self._get, self._dtypes, self._left = get, dtypes, MOST_VALUES
        self.values: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {}

    def read(self, offs: int, count: int) -> int:
        """Returns the byte after the last one."""
        for _ in range(count):
            name, offs = self._text(offs)
            kind, offs = self._kind(offs)
            if name in self.values:
                raise ValueError(f"field {name!r} is given twice")
            self.values[name], offs = self._value(kind, offs)
            self.kinds[name] = kind
        return offs

    def _kind(self, offs: int) -> tuple[Any, int]:
        from gguf import GGUFValueType

        return GGUFValueType(int(self._get(offs, np.uint32)[0])), offs + 4

    def _value(self, kind: Any, offs: int) -> tuple[Any, int]:
        self._left -= 1
        if kind.name == "STRING":
            return self._text(offs)
        if kind.name == "ARRAY":
            return self._list(offs)
        value = self._get(offs, self._dtypes[kind])
        return value.tolist()[0], offs + value.nbytes

    def _list(self, offs: int) -> tuple[list[Any], int]:
        kind, offs = self._kind(offs)
        count, offs = int(self._get(offs, np.uint64)[0]), offs + 8
        if count > self._left:
            raise ValueError(f"expected at most {MOST_VALUES:,} values in all fields, got a list of {count:,}")
        self._left -= count
        if kind.name == "STRING":
            texts = []
            for _ in range(count):
                text, offs = self._text(offs)
                texts.append(text)
            return texts, offs
        if kind not in self._dtypes:
            raise ValueError(f"expected a list of numbers or texts, got {kind.name}")
        values = self._get(offs, self._dtypes[kind], count)
        return values.tolist(), offs + values.nbytes

    def _text(self, offs: int) -> tuple[str, int]:
        length = int(self._get(offs, np.uint64)[0])
        text = self._get(offs + 8, np.uint8, length)
        return str(text.tobytes(), "utf-8"), offs + 8 + length


def _no_overlap(path: Path, tensors: list[Any]) -> None:
    spans = sorted((int(t.data_offset), int(t.n_bytes), t.name) for t in tensors if t.n_bytes)
    for (start, size, name), (next_start, _, other) in pairwise(spans):
        if start + size > next_start:
            raise refuse(path, name, f"its bytes overlap those of {other!r}")


def _entry(path: Path, file: BinaryIO, tensor: Any, byte_order: str) -> Entry:
    shape, kind = tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name
    stored = partial(mapped, file, int(tensor.data_offset), int(tensor.n_bytes))
    if tensor.data.dtype != np.uint8:
        info = TensorInfo(shape, tensor.data.dtype.newbyteorder("=").name)
        return Entry(path, info, partial(_plain, stored, info, tensor.data.dtype))
    if byte_order != "I":
        raise refuse(path, tensor.name, f"{kind} in the other byte order cannot be read")
    if kind == "BF16":
        return Entry(path, TensorInfo(shape, "bfloat16"), lambda: viewed(stored(), "bfloat16", shape))
    rows = (-1, tensor.data.shape[-1])
    return Entry(
        path,
        TensorInfo(shape, "float32", kind),
        lambda: _dequantized(stored().reshape(rows), tensor.tensor_type, shape),
    )


def _plain(stored: Any, info: TensorInfo, dtype: np.dtype) -> Array:
    array = viewed(stored(), info.dtype, info.shape)
    return array if dtype.isnative else array.byteswap()


def _dequantized(data: Array, kind: Any, shape: tuple[int, ...]) -> Array:
    """In blocks of rows: the package keeps all pieces of a result beside the result."""
    from gguf.quants import dequantize

    result = np.empty((len(data), shape[-1]) if data.size else (0, 1), np.float32)
    step = max(1, BLOCK // data.shape[-1]) if data.size else 1
    for start in range(0, len(data), step):
        with np.errstate(all="ignore"):  # a damaged scale is data too: inf and NaN are what it gives
            result[start : start + step] = dequantize(data[start : start + step], kind)
    return result.reshape(shape)

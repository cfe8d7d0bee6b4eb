"""One function for each format, from a path to its tensors. Its package is imported inside, so that only those who open
such a file need it. What the packages leave unchecked is checked here: sizes, before anything is allocated.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec.weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, refuse

SAFETENSORS = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def parse_json(text: str | bytes) -> dict[str, Any]:
    """An object whose names are all different; ValueError otherwise."""
    parsed = json.loads(text, object_pairs_hook=_no_duplicates)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a JSON object, got {type(parsed).__name__}")
    return parsed


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("a name stands twice in one JSON object")
    return parsed


# --- safetensors ---------------------------------------------------------------------------------------------------


def safetensors(path: Path) -> Contents:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="np")
    entries = {}
    for name in file.offset_keys():
        piece = file.get_slice(name)
        info = TensorInfo(tuple(piece.get_shape()), SAFETENSORS.get(piece.get_dtype(), piece.get_dtype()))
        entries[name] = Entry(path, info, partial(file.get_tensor, name))
    extra = file.metadata() or {}
    settings, manifest = (parse_json(extra[name]) if name in extra else {} for name in ("config", "gqa_manifest"))
    return Contents("safetensors", entries, settings, manifest)


# --- GGUF ----------------------------------------------------------------------------------------------------------


def gguf(path: Path) -> Contents:
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Array:
            """The package's own returns less at the end of the file, and reads arrays of nothing for ever."""
            if not 0 <= offset <= offset + int(count) * np.dtype(dtype).itemsize <= self.data.size:
                raise ValueError(f"{count} values of {np.dtype(dtype)} at byte {offset} end past the file")
            return super()._get(offset, dtype, count, override_order)

    with np.errstate(all="ignore"):
        reader = Reader(path)
    _no_overlap(path, [(int(t.data_offset), int(t.n_bytes), t.name) for t in reader.tensors])
    entries = {tensor.name: _gguf_entry(path, tensor, reader.byte_order) for tensor in reader.tensors}
    return Contents("gguf", entries, {name: field.contents() for name, field in reader.fields.items()})


def _no_overlap(path: Path, spans: list[tuple[int, int, str]]) -> None:
    spans = sorted(span for span in spans if span[1])
    for (start, size, name), (next_start, _, other) in pairwise(spans):
        if start + size > next_start:
            raise refuse(path, name, f"its bytes overlap those of {other!r}")


def _gguf_entry(path: Path, tensor: Any, byte_order: str) -> Entry:
    """float16, bfloat16, float32, float64 and integers as they are stored; quantized tensors as float32."""
    shape, kind = tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name
    if kind == "BF16" and byte_order == "I":
        return Entry(path, TensorInfo(shape, "bfloat16"), lambda: np.array(tensor.data, subok=False).view("bfloat16"))
    if tensor.data.dtype != np.uint8:
        plain = tensor.data.dtype.newbyteorder("=")
        return Entry(path, TensorInfo(shape, plain.name), lambda: np.array(tensor.data, plain, subok=False))
    if byte_order != "I":
        raise refuse(path, tensor.name, f"{kind} of the other byte order cannot be dequantized")
    return Entry(path, TensorInfo(shape, "float32", kind), partial(_dequantized, tensor))


def _dequantized(tensor: Any) -> Array:
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # damaged scales are data: what they give is given
        return np.array(dequantize(tensor.data, tensor.tensor_type), subok=False)

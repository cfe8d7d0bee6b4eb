"""Type, dtype and shape of one array."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

FLOATING = ("float16", "bfloat16", "float32", "float64")
WIDER = {  # the dtypes that hold every value of the key exactly
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}

Shape = tuple[int, ...]


def dtype_name(array: Any) -> str:
    """`float32` for NumPy's, JAX's and PyTorch's float32 alike."""
    dtype = array.dtype
    return _numpy_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


@lru_cache
def _numpy_name(dtype: np.dtype[Any]) -> str:
    """Cached, since NumPy takes longer to write a dtype's name than all other checks of a decoded token take."""
    return str(dtype)


def is_integer_dtype(array: Any) -> bool:
    return dtype_name(array).startswith(("int", "uint"))


def array(name: str, value: Any, kind: Any) -> None:
    """value is one of the backend's own arrays."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected an array of this backend, got {type(value).__name__}")


def floating(name: str, value: Any) -> None:
    if dtype_name(value) not in FLOATING:
        raise TypeError(f"{name}: expected a dtype of {', '.join(FLOATING)}, got {dtype_name(value)}")


def same_dtype(name: str, value: Any, owner: str, expected: str) -> None:
    """value has the dtype of its owner: the query, a layer or a model."""
    got = dtype_name(value)
    if got != expected:
        remedies = {
            "the layer's": f": cast the input to {expected}, or make the layer with dtype {got}",
            "the model's": f": cast the input to {expected}, or make the model with dtype {got}",
        }
        raise TypeError(f"{name}: expected {owner} dtype {expected}, got {got}{remedies.get(owner, '')}")


def shape(name: str, got: Shape, axes: str, known: Mapping[str, int]) -> None:
    """got has the axes that `axes` spells, e.g. "B K S H", with the sizes known so far."""
    got, symbols = tuple(got), axes.split()
    pattern = f"({', '.join(symbols)}{',' * (len(symbols) == 1)})"
    if len(got) != len(symbols):
        raise ValueError(f"{name}: expected {len(symbols)} axes {pattern}, got {got}")
    for symbol, size in zip(symbols, got, strict=True):
        if size != known.get(symbol, size):
            sizes = ", ".join(f"{s} = {known[s]}" for s in symbols if s in known)
            raise ValueError(f"{name}: expected {pattern} with {sizes}, got {got}: axis {symbol} is {size}")


def broadcastable(name: str, got: Shape, axes: str, full: Shape) -> None:
    got = tuple(got)
    if len(got) != len(full) or any(size not in (1, limit) for size, limit in zip(got, full, strict=True)):
        raise ValueError(f"{name}: expected a shape that broadcasts to ({axes}) = {full}, got {got}")


def automatic_axes(name: str, axes: tuple[str, ...]) -> None:
    """JAX: the axes of a mesh over which an array is sharded explicitly."""
    if axes:
        raise ValueError(
            f"{name}: expected an array on a mesh with axes of AxisType.Auto, got one sharded over the Explicit axes "
            f"{', '.join(axes)}: make the mesh with axis_types=(AxisType.Auto,) * n"
        )

"""Checkpoint files as mappings: a tensor's name -> its array, read and dequantized when it is asked for.

A format is a function from a path to one reader for each name. Its package is imported inside, so that only those who
open such a file need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec import checks

Array = np.ndarray
Readers = Mapping[str, Callable[[], Array]]


class Checkpoint(Mapping[str, Array]):
    """The tensors of a file, in its order. Nothing is kept: each access reads anew, an array of its own."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Array:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # a Mapping would read the tensor to find out


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint file, under the names that the file gives them.

    Raises ValueError for a suffix that is no known format.
    """
    suffix = Path(path).suffix
    checks.choice("suffix", suffix, tuple(FORMATS))
    return Checkpoint(FORMATS[suffix](Path(path)))


def _gguf(path: Path) -> Readers:
    from gguf import GGUFReader

    return {tensor.name: partial(_gguf_array, tensor) for tensor in GGUFReader(path).tensors}


def _gguf_array(tensor: Any) -> Array:
    """float16, float32 and float64 as they are stored; bfloat16 and quantized tensors as float32."""
    from gguf.quants import dequantize

    stored = tensor.data
    plain = stored.dtype.kind == "f"
    return np.array(stored if plain else dequantize(stored, tensor.tensor_type), subok=False)


FORMATS: dict[str, Callable[[Path], Readers]] = {".gguf": _gguf}

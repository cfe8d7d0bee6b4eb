"""What a checkpoint is: names, what is known of each tensor without reading it, and a function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (it registers np.dtype("bfloat16"))
import numpy as np

from gqa_weights.checkpoint.printable import sentence

Array = np.ndarray

DTYPES = {
    *(f"float{bits}" for bits in (16, 32, 64)),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("bool", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
}
SETTINGS_ALONE = "settings alone"  # the format of a folder that has config.json and no tensors
# Compressed weights: more than MOST_UNPACKED bytes from less than 1 / MOST_RATIO of them is refused as a zip bomb.
MOST_UNPACKED, MOST_RATIO = 2**28, 100


LONGEST = 300  # characters of what another package says


class CheckpointError(ValueError):
    """A file that cannot be read, trusted or written, in one printable sentence that names the file and the tensor."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


@dataclass(frozen=True)
class TensorInfo:
    """dtype as NumPy and ml_dtypes name it: that of the array that is read, or as the file names it where neither
    has it. stored: the type in the file where it is another, such as "Q4_1" for what is dequantized to float32.
    """

    shape: tuple[int, ...]
    dtype: str
    stored: str | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_bytes(self) -> int:
        """Of a tensor that is written, in the file: blocks of Q8_0 are a scale of two bytes and 32 numbers of one."""
        return prod(self.shape) // 32 * 34 if self.stored == "Q8_0" else self.nbytes


Index = tuple[slice, ...]  # of a part of a tensor, one for each axis


class Entry(NamedTuple):
    """read: the whole tensor, of formats that map files without memory of its own. part: some of it, of a format that
    would read all.
    """

    path: Path
    info: TensorInfo
    read: Callable[[], Array]
    part: Callable[[Index], Array] | None = None


@dataclass(frozen=True)
class Contents:
    format: str
    entries: Mapping[str, Entry]
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint(Mapping[str, Array]):
    """The tensors of a file or a folder, in its order. Nothing is kept: each access reads anew, an array of its own.

    Access raises CheckpointError for a tensor that cannot be read, KeyError for an unknown name.

    Attributes:
        path: The file or folder.
        format: "safetensors", "gguf", "npz", "torch" or "orbax".
        settings: config.json of a folder (Meta's params.json), the key-value fields of a GGUF, {} if there are none.
        manifest: What `save_checkpoint` was given, {} for files from elsewhere.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path = path
        self.format = contents.format
        self.settings = contents.settings
        self.manifest = contents.manifest
        self._entries = contents.entries

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, without reading the data."""
        return self._entries[name].info

    def __getitem__(self, name: str) -> Array:
        path, info, read, _ = self._entries[name]
        with reading(path, name):
            if info.dtype not in DTYPES:
                raise ValueError(f"expected a dtype that NumPy or ml_dtypes has, got {info.dtype}")
            array = read()
            if (array.shape, array.dtype.name) != (info.shape, info.dtype):
                raise ValueError(f"expected {info.dtype} {info.shape}, got {array.dtype.name} {array.shape}")
            return array

    def reader(self, name: str) -> Callable[[Index], Array]:
        """A function that gives parts of a tensor: of a format that can, only those are read, else the whole, now."""
        path, info, _, read = self._entries[name]
        if read is None or info.dtype not in DTYPES:
            return self[name].__getitem__

        def part(index: Index) -> Array:
            with reading(path, name):
                return read(index)

        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # a Mapping would read the tensor to find out


@contextmanager
def reading(path: Path, tensor: str | None = None) -> Iterator[None]:
    """Whatever a format's package raises about a file comes out as one CheckpointError: over the formats that is any
    kind of exception, down to MemoryError.
    """
    try:
        yield
    except CheckpointError:
        raise
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{path}: install the package {error.name} to read this format") from error
    except Exception as error:
        raise CheckpointError(f"{_place(path, tensor)}: {_sentence(error)}") from error


def refuse(path: Path, tensor: str | None, reason: str) -> CheckpointError:
    return CheckpointError(f"{_place(path, tensor)}: {reason}")


def bounded(path: Path, tensor: str, claimed: int, stored: int) -> None:
    """Refuse a few stored bytes that would unpack to fill the memory."""
    if claimed > max(MOST_UNPACKED, MOST_RATIO * stored):
        raise refuse(path, tensor, f"{stored} bytes that claim to unpack to {claimed} are not read")


def dtype_known(name: str) -> bool:
    return name in DTYPES


def _place(path: Path, tensor: str | None) -> str:
    return f"{path}" if tensor is None else f"{path}: tensor {tensor!r}"


def _sentence(error: Exception) -> str:
    words = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{words} ({type(error).__name__})" if words else type(error).__name__

"""PyTorch's .pt, .pth and .bin: a zip archive of a pickle and the bytes of its tensors. Read without PyTorch.

The pickle is read by Python's own Unpickler with stand-ins for the few things that a dictionary of tensors is made of,
so that nothing in it runs, and each tensor is held against the size of the record that it names. `torch.load` maps the
archive instead, and where a record is shorter than the pickle claims it gives the bytes that follow it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gqa_weights.checkpoint.files import kept_open, mapped, viewed
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, dtype_known, refuse

NESTED = ("state_dict", "model_state_dict", "model")
MOST_PICKLED = 2**24  # bytes of the pickle: a hundred thousand tensors take fewer
LOCAL_HEADER = 30  # bytes of a zip archive before a member's name
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


class _Storage(NamedTuple):  # as a tuple, its fields are out of the reach of a pickle's BUILD
    """What a pickle names a storage by: the dtype of its class, the record, how many numbers it is said to hold."""

    dtype: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Record(NamedTuple):
    """Where the bytes of a storage are in the file."""

    start: int
    nbytes: int


def read(path: Path) -> Contents:
    if not zipfile.is_zipfile(path):
        raise refuse(path, None, "not the archive that torch.save writes since PyTorch 1.6: load and save it again")
    file = kept_open(path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise refuse(path, None, f"expected an archive without compression, got {packed[0]!r} compressed")
        top = _top(path, members)
        loaded = _unpickled(path, _small(archive, members[f"{top}data.pkl"]))
        big = f"{top}byteorder" in members and _small(archive, members[f"{top}byteorder"]) == b"big"
    start = f"{top}data/"
    records = {
        name.removeprefix(start): _record(path, file, member)
        for name, member in members.items()
        if name.startswith(start)
    }
    tensors = _tensors(path, loaded)
    return Contents("torch", {name: _entry(path, name, x, records, file, big) for name, x in tensors.items()})


# --- the archive -----------------------------------------------------------------------------------------------------


def _top(path: Path, members: Mapping[str, Any]) -> str:
    found = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(found) != 1 or found[0].count("/") != 1:
        raise refuse(path, None, f"expected one pickle NAME/data.pkl in the archive, got {len(found)}")
    return found[0]


def _small(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MOST_PICKLED:
        raise ValueError(f"expected at most {MOST_PICKLED:,} bytes in {member.filename!r}, got {member.file_size:,}")
    return archive.read(member)


def _record(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> _Record:
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\3\4":
        raise refuse(path, None, f"no header of {member.filename!r} where the archive places it")
    name, extra = (int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
    start = member.header_offset + LOCAL_HEADER + name + extra
    if start + member.file_size > path.stat().st_size:
        raise refuse(path, None, f"{member.filename!r} ends past the file")
    return _Record(start, member.file_size)


# --- the pickle ------------------------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if found := BUILDERS.get(f"{module} {name}"):
            return found
        if module in ("torch", "torch.storage") and name in STORAGES:
            return partial(_Storage, STORAGES[name])
        if module == "torch" and (dtype_known(name) or name in FLOAT8):
            return name
        raise _unknown(self._path, f"{module}.{name}")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage, key, _location, count = identity
        if kind != "storage" or not isinstance(storage, partial):
            raise ValueError(f"expected a storage, got {kind!r}")
        return storage(str(key), _count(count))


def _unpickled(path: Path, pickled: bytes) -> Any:
    for name in _globals(path, pickled):
        module, _, member = name.partition(" ")
        if f"{module} {member}" not in BUILDERS and module not in ("torch", "torch.storage"):
            raise _unknown(path, name.replace(" ", "."))
    return _Unpickler(path, pickled).load()


def _unknown(path: Path, name: str) -> ValueError:
    return refuse(path, None, f"expected a dictionary of tensors, but the file calls {name!r}")


def _globals(path: Path, pickled: bytes) -> Iterator[str]:
    """What the pickle would import. Places in its memo must be no more than it has bytes: as many are allocated."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield opcode.name
        elif opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(pickled):
            raise refuse(path, None, f"the pickle keeps a value at place {argument}")


def _rebuilt(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> _Tensor:
    """`torch._utils._rebuild_tensor_v2`, and `_v3`, which has a dtype of its own among the rest."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without a storage, a shape or strides")
    if len(shape) != len(stride):
        raise ValueError(f"shape {shape} and strides {stride} of one tensor")
    own = [dtype for dtype in rest if isinstance(dtype, str)]
    sizes, strides = tuple(map(_count, shape)), tuple(map(_count, stride))
    return _Tensor(storage, own[0] if own else storage.dtype, _count(offset), sizes, strides)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"expected an integer >= 0, got {str(value)[:40]}")
    return value


BUILDERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": OrderedDict,
    "torch._utils _rebuild_tensor_v2": _rebuilt,
    "torch._utils _rebuild_tensor_v3": _rebuilt,
    "torch._utils _rebuild_parameter": _parameter,
    "torch.nn.parameter Parameter": _parameter,
}


# --- the tensors -----------------------------------------------------------------------------------------------------


def _tensors(path: Path, loaded: Any) -> Mapping[str, _Tensor]:
    """The dictionary itself, or the one under a name of NESTED, beside which a trainer may keep anything."""
    if isinstance(loaded, Mapping):
        for inner in (loaded, *(loaded[name] for name in NESTED if isinstance(loaded.get(name), Mapping))):
            if inner and all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in inner.items()):
                return inner
    raise refuse(path, None, f"expected a dictionary of tensors, alone or under one of {', '.join(NESTED)}")


def _entry(path: Path, name: str, tensor: _Tensor, records: Mapping[str, _Record], file: BinaryIO, big: bool) -> Entry:
    storage = tensor.storage
    if storage.key not in records:
        raise refuse(path, name, f"the archive holds no record {storage.key!r}")
    record = records[storage.key]
    if storage.size * _itemsize(storage.dtype) != record.nbytes:
        claimed = f"{storage.size} numbers of {storage.dtype}"
        raise refuse(path, name, f"the file claims {claimed}, its record {storage.key!r} has {record.nbytes} bytes")
    elements, last = prod(tensor.shape), tensor.offset
    if elements:
        last += 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    itemsize = _itemsize(tensor.dtype)
    if last * itemsize > record.nbytes or elements * itemsize > record.nbytes:
        raise refuse(path, name, f"{tensor.dtype} {tensor.shape} does not fit the bytes that the archive holds")
    return Entry(path, TensorInfo(tensor.shape, tensor.dtype), partial(_read, file, record, tensor, big))


def _itemsize(dtype: str) -> int:
    return 1 if dtype in FLOAT8 else np.dtype(dtype).itemsize


def _read(file: BinaryIO, record: _Record, tensor: _Tensor, big: bool) -> Array:
    itemsize, shape = np.dtype(tensor.dtype).itemsize, tensor.shape
    steps = tuple(step * itemsize for step in tensor.stride)
    start, nbytes = record.start + tensor.offset * itemsize, prod(shape) * itemsize
    if _contiguous(tensor):
        array = viewed(mapped(file, start, nbytes), tensor.dtype, shape)
    else:
        last = sum((size - 1) * step for size, step in zip(shape, steps, strict=True)) + itemsize
        numbers = viewed(mapped(file, start, last), tensor.dtype, (-1,))
        array = np.array(np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False))
    return array.byteswap() if big else array


def _contiguous(tensor: _Tensor) -> bool:
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and stride != step:
            return not prod(tensor.shape)
        step *= size
    return True

"""PyTorch's .pt, .pth and .bin: a zip archive of a pickle and the bytes of its tensors."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, dtype_known, refuse

# What a dictionary of tensors is made of, besides dtypes and storages. PyTorch's own list also has constructors of any
# size, bytearray among them, with which a few bytes could ask for all memory.
BUILDERS = {
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter"),
}
NESTED = ("state_dict", "model_state_dict", "model")


def read(path: Path) -> Contents:
    import torch

    sizes = _check_archive(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = _tensors(path, loaded, torch.Tensor)
    return Contents("torch", {name: _entry(path, name, tensor, sizes) for name, tensor in tensors.items()})


def _check_archive(path: Path) -> set[int]:
    """The sizes of what the archive holds."""
    if not zipfile.is_zipfile(path):
        raise refuse(path, None, "not the archive that torch.save writes since PyTorch 1.6: load and save it again")
    with zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise refuse(path, None, f"expected an archive without compression, got {packed[0]!r} compressed")
        for member in archive.infolist():
            if member.filename.endswith("data.pkl"):
                for name in _globals(archive.read(member)):
                    _check_global(path, name)
        return {member.file_size for member in archive.infolist()}


def _globals(pickled: bytes) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield opcode.name


def _check_global(path: Path, name: str) -> None:
    module, _, member = name.partition(" ")
    plain = module in ("torch", "torch.storage") and (member.endswith("Storage") or dtype_known(member))
    if name not in BUILDERS and not plain:
        raise refuse(path, None, f"expected a dictionary of tensors, but the file calls {name.replace(' ', '.')!r}")


def _tensors(path: Path, loaded: Any, kind: type) -> Mapping[str, Any]:
    """The dictionary itself, or the one under a name of NESTED, beside which a trainer may keep anything."""
    if isinstance(loaded, Mapping):
        for inner in (loaded, *(loaded[name] for name in NESTED if isinstance(loaded.get(name), Mapping))):
            if inner and all(isinstance(k, str) and isinstance(v, kind) for k, v in inner.items()):
                return inner
    raise refuse(path, None, f"expected a dictionary of tensors, alone or under one of {', '.join(NESTED)}")


def _entry(path: Path, name: str, tensor: Any, sizes: set[int]) -> Entry:
    if tensor.is_sparse or tensor.is_quantized or tensor.device.type != "cpu":
        raise refuse(path, name, f"expected a dense tensor, got {tensor.layout} on {tensor.device}")
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored or stored not in sizes:
        raise refuse(path, name, f"{tensor.dtype} {tuple(tensor.shape)} does not fit the bytes that the archive holds")
    info = TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return Entry(path, info, partial(_read, tensor.detach(), info))


def _read(tensor: Any, info: TensorInfo) -> Array:
    """Through bytes, because PyTorch gives NumPy no bfloat16."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().copy().view(info.dtype).reshape(info.shape)

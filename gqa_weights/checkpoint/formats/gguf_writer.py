"""GGUF, written through the package of that name: the fields first, then one tensor after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gqa_weights.checkpoint.atomic import sync
from gqa_weights.checkpoint.job import Job, Tensor
from gqa_weights.checkpoint.tensors import Array, TensorInfo, refuse

ARCHITECTURE = "general.architecture"
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
QUANTIZED = "Q8_0"
BLOCK, BLOCK_BYTES = 32, 34  # numbers of a block of Q8_0, and its bytes: the scale, in float16, is the first two
ROW_BYTES = 2**22  # of rows that are quantized at once


def write(job: Job) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ModuleNotFoundError as error:
        raise refuse(job.final, None, f"install the package {error.name} to write this format") from error

    fields = dict(job.settings.get("config", {}))
    if ARCHITECTURE not in fields:
        raise refuse(
            job.final, None, f"expected settings with {ARCHITECTURE} to write a GGUF, got {len(fields)} without"
        )
    writer = GGUFWriter(job.path, fields.pop(ARCHITECTURE))
    for key, value in fields.items():
        if value != []:  # the format has no empty lists
            writer.add_key_value(key, value, _kind(value))
    tensors = [_stored(job, tensor) for tensor in job.tensors]
    for (name, info, _), (_, given, _) in zip(tensors, job.tensors, strict=True):
        kind = GGMLQuantizationType[given.stored or _type(job, name, info)]
        writer.add_tensor_info(name, info.shape, np.dtype(info.dtype), info.nbytes, raw_dtype=kind)
    try:
        _write_all(job, writer, tensors)
    finally:
        writer.close()
    sync(job.path)


def _write_all(job: Job, writer: Any, tensors: list[Tensor]) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for tensor in tensors:
        job.write(file, [tensor])
        writer.write_padding(file, tensor[1].nbytes)


def _kind(value: Any) -> Any:
    """The type of a field: llama.cpp reads counts as uint32."""
    from gguf import GGUFValueType

    unsigned = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
    return GGUFValueType.UINT32 if unsigned else GGUFValueType.get_type(value)


def _type(job: Job, name: str, info: TensorInfo) -> str:
    if info.dtype not in TYPES:
        raise refuse(job.final, name, f"expected a dtype of {', '.join(TYPES)} in a GGUF, got {info.dtype}")
    return TYPES[info.dtype]


def _stored(job: Job, tensor: Tensor) -> Tensor:
    """The tensor as the bytes in the file, where these are not its numbers."""
    name, info, _ = tensor
    if info.stored != QUANTIZED:
        return tensor
    shape = (*info.shape[:-1], info.shape[-1] // BLOCK * BLOCK_BYTES)
    return name, TensorInfo(shape, "uint8"), lambda: _quantized(job.final, name, job.read(tensor), shape)


def _quantized(path: Path, name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """In blocks of rows. A scale that is not finite stands for numbers that are not, or that float16 cannot scale."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows, result = array.reshape(-1, array.shape[-1]), np.empty((array.size // array.shape[-1], shape[-1]), np.uint8)
    step = max(1, ROW_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        with np.errstate(all="ignore"):
            packed = quantize(np.ascontiguousarray(rows[start : start + step]), GGMLQuantizationType.Q8_0)
        scales = packed.reshape(-1, BLOCK_BYTES)[:, :2].copy().view(np.float16)
        if not np.isfinite(scales).all():
            raise refuse(path, name, "Q8_0 holds no infinite numbers and no NaN, and none above 127 * 65,504")
        result[start : start + step] = packed
    return result.reshape(shape)

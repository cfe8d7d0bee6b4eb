"""safetensors: one file, or a folder as Hugging Face has them, with shards and their index."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gqa_weights.checkpoint import json_files as settings
from gqa_weights.checkpoint.atomic import sync
from gqa_weights.checkpoint.checksums import DIGITS
from gqa_weights.checkpoint.files import kept_open, mapped, viewed
from gqa_weights.checkpoint.job import Job, Tensor, write_json, write_settings
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo

NAMES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool", "C64": "complex64"},
}
CODES = {name: code for code, name in NAMES.items()}


def read(path: Path) -> Contents:
    from safetensors import safe_open

    file = kept_open(path)
    length = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if 8 + length > size:
        raise ValueError(f"no safetensors file, or a part of one: expected a header of {length:,} bytes in {size:,}")
    settings.check_size(length, settings.INDEX_LIMIT)
    safe_open(path, framework="np")  # raises unless header, sizes and offsets are consistent with each other
    header = settings.parse(file.read(length), settings.INDEX_LIMIT)
    extra = header.pop("__metadata__", {})
    entries = {}
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        info = TensorInfo(tuple(tensor["shape"]), NAMES.get(tensor["dtype"], tensor["dtype"]))
        entries[name] = Entry(path, info, partial(_read, file, 8 + length + tensor["data_offsets"][0], info))
    return Contents("safetensors", entries, *settings.pair(lambda name: settings.parse(extra.get(name, "{}"))))


def _read(file: BinaryIO, start: int, info: TensorInfo) -> Array:
    """As a mapping of the file; the package would copy."""
    return viewed(mapped(file, start, info.nbytes), info.dtype, info.shape)


def write(job: Job) -> None:
    if job.final.suffix == ".safetensors":
        job.found.update((name, "0" * DIGITS) for name, _, _ in job.tensors)  # their places in the header
        _write_file(job, job.path, job.tensors, _extra(job))
        if job.checksums:
            with job.path.open("r+b") as file:
                file.write(_header(job.tensors, _extra(job)))
        sync(job.path)
        return
    job.path.mkdir()
    files = shards(job.tensors, job.shard_bytes)
    places: dict[str, str] = {}
    with ThreadPoolExecutor(1) as disk:
        synced = []
        for name, tensors in files.items():
            _write_file(job, job.path / name, tensors, {})
            synced.append(disk.submit(sync, job.path / name))  # while the next shard is computed
            places |= {tensor[0]: name for tensor in tensors}
        for shard in synced:
            shard.result()
    write_settings(job)
    if len(files) > 1:
        total = sum(info.nbytes for _, info, _ in job.tensors)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(job.path / "model.safetensors.index.json", index)


def shards(tensors: list[Tensor], shard_bytes: int) -> dict[str, list[Tensor]]:
    """The files of a folder, each with its tensors: one file, or shards of at most so many bytes."""
    parts: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if parts[-1] and filled + tensor[1].nbytes > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += tensor[1].nbytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{number:05}-of-{len(parts):05}.safetensors": part for number, part in enumerate(parts, 1)}


def _write_file(job: Job, path: Path, tensors: list[Tensor], extra: dict[str, str]) -> None:
    """Written here because the package needs all tensors in memory at once. The format: the length of a JSON header in
    8 bytes, the header, the data without gaps. Wider items first, as the package has it, so that all are aligned.
    """
    with path.open("wb") as file:
        file.write(_header(tensors, extra))
        job.write(file, _in_order(tensors))


def _extra(job: Job) -> dict[str, str]:
    return {name: json.dumps(content) for name, content in job.stated().items()}


def _in_order(tensors: list[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: -np.dtype(tensor[1].dtype).itemsize)


def _header(tensors: list[Tensor], extra: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **extra}}
    start = 0
    for name, info, _ in _in_order(tensors):
        end = start + info.nbytes
        header[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

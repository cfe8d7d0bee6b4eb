"""Meta's folder: consolidated.00.pth, one such file for each rank of tensor parallelism, and params.json beside them.

Source: `llama/model.py` and fairscale's layers: a column-parallel matrix is cut along its rows, a row-parallel one
along its columns; norms are the same in every file. Llama 1 and 2 cut the embedding along its width, Llama 3 along
the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_weights.checkpoint import json_files
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.formats import torch
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, refuse

NAME = re.compile(r"consolidated\.(\d\d)\.pth")
# Of a tensor's name before `.weight`: the axis along which the ranks cut it.
CUT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
KV, EMBEDDING = ("wk", "wv"), "tok_embeddings"


def read(first: Path) -> Contents:
    """first: the file of rank 0."""
    paths = _ranks(first)
    contents = [torch.read(path) for path in paths]
    if len(paths) == 1:
        return contents[0]
    names = [set(part.entries) for part in contents]
    if any(other != names[0] for other in names):
        odd = next(path for path, other in zip(paths, names, strict=True) if other != names[0])
        raise refuse(odd, None, f"expected the tensors of {first.name}, got others")
    params = json_files.read(first.with_name("params.json"))
    entries = {name: _joined(name, [part.entries[name] for part in contents], params) for name in contents[0].entries}
    return Contents("torch", entries)


def _ranks(first: Path) -> list[Path]:
    numbers = sorted(int(found[1]) for path in first.parent.iterdir() if (found := NAME.fullmatch(path.name)))
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing:
        raise refuse(first.parent, None, f"expected consolidated.{missing[0]:02}.pth, the file of one rank, got none")
    paths = [first.with_name(f"consolidated.{number:02}.pth") for number in numbers]
    for path in paths:
        is_file(path, within=first.parent)
    return paths


def _joined(name: str, parts: Sequence[Entry], params: Mapping[str, Any]) -> Entry:
    path, info = parts[0].path, parts[0].info
    if any(part.info != info for part in parts):
        raise refuse(path, name, f"expected {info.dtype} {info.shape} in the file of each rank, got others")
    module = name.removesuffix(".weight").rpartition(".")[2]
    axis = _embedding_axis(info, params) if module == EMBEDDING else CUT.get(module)
    if axis is None or len(info.shape) <= axis:
        return Entry(path, info, partial(_same, path, name, parts))
    if module in KV:
        parts = _distinct(path, name, parts, params)
    shape = list(info.shape)
    shape[axis] *= len(parts)
    return Entry(path, TensorInfo(tuple(shape), info.dtype), partial(_concatenated, parts, axis))


def _embedding_axis(info: TensorInfo, params: Mapping[str, Any]) -> int:
    return 0 if len(info.shape) == 2 and info.shape[1] == params.get("dim") else 1


def _distinct(path: Path, name: str, parts: Sequence[Entry], params: Mapping[str, Any]) -> Sequence[Entry]:
    """With more ranks than KV heads, neighbouring ranks hold the same head."""
    heads = params.get("n_kv_heads", len(parts))
    if not isinstance(heads, int) or heads < 1 or (heads < len(parts) and len(parts) % heads):
        raise refuse(path, name, f"n_kv_heads {heads!r} of params.json does not fit {len(parts)} ranks")
    return parts[:: max(1, len(parts) // heads)]


def _concatenated(parts: Sequence[Entry], axis: int) -> Array:
    """Piece by piece into place: beside the whole only one piece is in memory."""
    shape = list(parts[0].info.shape)
    size = shape[axis]
    shape[axis] = size * len(parts)
    whole = np.empty(shape, parts[0].info.dtype)
    for number, part in enumerate(parts):
        place = (*[slice(None)] * axis, slice(number * size, (number + 1) * size))
        whole[place] = part.read()
    return whole


def _same(path: Path, name: str, parts: Sequence[Entry]) -> Array:
    first = parts[0].read()
    if any(part.read().tobytes() != first.tobytes() for part in parts[1:]):
        raise refuse(path, name, "expected the same numbers in the file of each rank, got others")
    return first

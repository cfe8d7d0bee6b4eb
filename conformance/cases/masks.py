"""The masks of a case, drawn: boolean ones (True may attend), biases, and biases whose -inf hides."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.cases.table import Case

Array = np.ndarray
BLOCK = 64  # keys that "whole blocks hidden" hides together


def drawn(case: Case, dtype: np.dtype[Any], rng: np.random.Generator) -> Any:
    """The mask of a case, or None. A bias has the query's dtype where that is float32 or float64, else float32."""
    B, N, T, S = case.B, case.config.num_heads, case.T, case.S
    kind = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float32)
    match case.feature.mask:
        case "bool (T, S)":
            return _some_hidden(rng, (T, S))
        case "bool per row":
            return _some_hidden(rng, (B, 1, T, S))
        case "bool per head":
            return _some_hidden(rng, (1, N, T, S))
        case "bool (B, N, T, S)":
            return _some_hidden(rng, (B, N, T, S))
        case "bool (B, 1, T, 1)":
            return np.arange(T)[:, None] % 3 != np.arange(B)[:, None, None, None] % 3
        case "padding" | "poisoned padding":
            return _padding(rng.integers(2, S, size=B) if S > 2 else np.full(B, S), S)
        case "poisoned -inf":
            return np.where(_padding(rng.integers(2, S, size=B), S), 0.0, -np.inf).astype(kind)
        case "poisoned per head":  # other lengths for each KV head
            lengths = np.resize([2, S, S - 3], case.config.num_kv_heads).repeat(case.config.group_size)
            return np.broadcast_to(np.arange(S) < lengths[:, None, None], (B, N, 1, S)).copy()
        case "lengths at block edges":
            return _padding(np.resize([BLOCK, 1, BLOCK + 1, S, BLOCK - 1], B), S)
        case "whole blocks hidden":
            return _blocks_hidden(rng, B, T, S)
        case "float (T, S)":
            return rng.normal(size=(T, S)).astype(kind)
        case "float per head":
            return rng.normal(size=(1, N, T, S)).astype(kind)
        case "float (B, N, 1, S)":
            return rng.normal(size=(B, N, 1, S)).astype(kind)
        case "float (B, 1, T, 1)":
            return rng.normal(size=(B, 1, T, 1)).astype(kind)
        case "float16 per row":
            return rng.normal(size=(B, 1, T, S)).astype(np.float16)
        case "float with -inf":
            return np.where(_some_hidden(rng, (B, 1, T, S)), rng.normal(size=(B, 1, T, S)), -np.inf).astype(kind)
        case "finfo.min":
            bias = np.where(_some_hidden(rng, (T, S)), 0, np.finfo(kind).min).astype(kind)
            bias[0] = np.finfo(kind).min
            return bias
        case "empty rows":
            mask = _some_hidden(rng, (B, 1, T, S))
            mask[0, 0, 1 % T] = mask[-1, 0, -1] = False
            return mask
    return None


def visible(mask: Array) -> Array:
    """Where a mask hides nothing."""
    return mask if mask.dtype == bool else mask != -np.inf


def _padding(lengths: Array, S: int) -> Array:
    return (np.arange(S) < lengths[:, None])[:, None, None, :]


def _some_hidden(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """About 40 % of the keys hidden, one at a random place of each row always visible."""
    mask = rng.random(shape) < 0.6
    always = rng.integers(shape[-1], size=(*shape[:-1], 1))
    np.put_along_axis(mask, always, True, axis=-1)
    return mask


def _blocks_hidden(rng: np.random.Generator, B: int, T: int, S: int) -> Array:
    """For each block of queries some blocks of keys hidden: the first one of row 0, another one of each other row."""
    mask = np.ones((B, 1, T, S), bool)
    for b in range(B):
        for start in range(0, T, BLOCK):
            hidden = (b + start // BLOCK) % (S // BLOCK) * BLOCK
            mask[b, 0, start : start + BLOCK, hidden : hidden + BLOCK] = False
    return mask & (rng.random((B, 1, T, S)) < 0.9)

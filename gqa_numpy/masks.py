"""Masks: which keys a query may see (True), or what is added to its scores (floating, -inf = may not). SPEC 3 and 4.

The position of query i is i + offset, that of key j is j; offset defaults to S - T: the last query sees the last key.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Integer

from gqa_spec import checks
from gqa_spec.settings import KernelSettings

Array = np.ndarray
Offset = int | np.integer[Any] | Integer[Array, "..."] | None


def query_positions(T: int, S: int, offset: Offset = None) -> Integer[Array, "..."]:
    """The position of each query, i + offset: (T,), or (B, T) for per-row offsets (B,)."""
    return np.asarray(S - T if offset is None else offset)[..., None] + np.arange(T)


def relative_positions(T: int, S: int, offset: Offset = None) -> Integer[Array, "..."]:
    """The distance from key j to query i, i + offset - j: (T, S), or (B, 1, T, S) for per-row offsets (B,)."""
    distance = query_positions(T, S, offset)[..., None] - np.arange(S)
    return distance[:, None] if distance.ndim == 3 else distance


def causal(T: int, S: int, offset: Offset = None) -> Bool[Array, "..."]:
    """Keys up to the query's own position: j <= i + offset. (T, S), or (B, 1, T, S) for per-row offsets."""
    return relative_positions(T, S, offset) >= 0


def window(T: int, S: int, window: int, offset: Offset = None) -> Bool[Array, "..."]:
    """The band |i + offset - j| < window; with `causal`, the last `window` keys, the query's own position counted."""
    checks.integer("window", window, at_least=1)
    return np.abs(relative_positions(T, S, offset)) < window


def chunk(T: int, S: int, chunk: int, offset: Offset = None) -> Bool[Array, "..."]:
    """Keys of the query's own chunk (Llama 4), floor division, so that negative positions have chunks too."""
    checks.integer("chunk", chunk, at_least=1)
    key_position = np.arange(S)
    query_position = relative_positions(T, S, offset) + key_position
    return query_position // chunk == key_position // chunk


def padding(lengths: Integer[Array, "B"], S: int) -> Bool[Array, "B 1 1 S"]:
    """The first lengths[b] keys of row b."""
    return (np.arange(S) < np.asarray(lengths)[:, None])[:, None, None, :]


def segments(query_ids: Integer[Array, "B T"], key_ids: Integer[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Keys of the query's own segment: packed sequences that must not see each other."""
    return (np.asarray(query_ids)[:, :, None] == np.asarray(key_ids)[:, None, :])[:, None]


def alibi_slopes(num_heads: int) -> Float[Array, "N"]:
    """The published slopes (Press et al. 2022, arXiv 2108.12409): 2^(-8 n / N), and their rule for other N."""
    checks.integer("num_heads", num_heads, symbol="N", at_least=1)
    power = 1 << (num_heads.bit_length() - 1)
    base = [2.0 ** (-8 * (n + 1) / power) for n in range(power)]
    between = [2.0 ** (-8 * (n + 1) / (2 * power)) for n in range(0, 2 * (num_heads - power), 2)]
    return np.array(base + between)


def alibi(num_heads: int, T: int, S: int, offset: Offset = None) -> Float[Array, "..."]:
    """-slope * |i + offset - j| in float32: (1, N, T, S), or (B, N, T, S) for per-row offsets."""
    distance = np.abs(relative_positions(T, S, offset))
    distance = distance if distance.ndim == 4 else distance[None, None]
    return (-alibi_slopes(num_heads)[:, None, None] * distance).astype(np.float32)


def combine(*masks: Array) -> Array:
    """All masks at once: booleans AND, floats add (finite sums stay finite), False becomes -inf."""
    combined = masks[0]
    for mask in masks[1:]:
        combined = _both(combined, mask)
    return combined


def _both(a: Array, b: Array) -> Array:
    if a.dtype == bool and b.dtype == bool:
        return a & b
    a, b = (_as_bias(x, like=y) for x, y in ((a, b), (b, a)))
    with np.errstate(over="ignore"):
        total = a + b
    limits = ml_dtypes.finfo(total.dtype)
    return np.where(np.isfinite(a) & np.isfinite(b), np.clip(total, limits.min, limits.max), total)


def _as_bias(mask: Array, like: Array) -> Array:
    return np.where(mask, like.dtype.type(0), like.dtype.type(-np.inf)) if mask.dtype == bool else mask


def split(mask: Array | None) -> tuple[Array | None, Array | None]:
    """A user's mask as (visible, bias): a boolean has no bias; in a float -inf is invisible, all else is bias."""
    if mask is None or mask.dtype == bool:
        return mask, None
    visible = mask != -np.inf
    return visible, np.where(visible, mask, mask.dtype.type(0))


def visible_keys(
    T: int, S: int, mask: Bool[Array, "..."] | None, settings: KernelSettings, offset: Offset
) -> Bool[Array, "b n t s"] | None:
    """The keys that pass the mask, causal, window and chunk; None where nothing is hidden.

    (b, n, T, S), with b = 1 or n = 1 where all rows or all heads see the same. offset: of the first query from the
    first of the S keys; a block has one of its own.
    """
    conditions = [mask] if mask is not None else []
    if settings.causal:
        conditions.append(causal(T, S, offset))
    if settings.window is not None:
        conditions.append(window(T, S, settings.window, offset))
    if settings.chunk is not None:
        conditions.append(chunk(T, S, settings.chunk, offset))
    if not conditions:
        return None
    visible = combine(*conditions)
    visible = visible if visible.ndim == 4 else visible[None, None]
    return np.broadcast_to(visible, (*visible.shape[:2], T, S))

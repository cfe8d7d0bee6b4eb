"""Masks: which keys a query may see (True), or what is added to its scores (floating, -inf = may not). SPEC 3 and 4.

The position of query i is i + offset, that of key j is j; offset defaults to S - T: the last query sees the last key.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer

from gqa_jax.arrays import as_array
from gqa_spec import checks
from gqa_spec.settings import KernelSettings

Offset = int | np.integer[Any] | Integer[Array, "..."] | None


def query_positions(T: int, S: int, offset: Offset = None) -> Integer[Array, "..."]:
    """The position of each query, i + offset: (T,), or (B, T) for per-row offsets (B,)."""
    start = jnp.asarray(S - T if offset is None else offset, dtype=int)
    return start[..., None] + _last_axis(jnp.arange(T), start.ndim + 1)


def relative_positions(T: int, S: int, offset: Offset = None) -> Integer[Array, "..."]:
    """The distance from key j to query i, i + offset - j: (T, S), or (B, 1, T, S) for per-row offsets (B,)."""
    position = query_positions(T, S, offset)
    distance = position[..., None] - _last_axis(jnp.arange(S), position.ndim + 1)
    return distance[:, None] if distance.ndim == 3 else distance


def causal(T: int, S: int, offset: Offset = None) -> Bool[Array, "..."]:
    """Keys up to the query's own position: j <= i + offset. (T, S), or (B, 1, T, S) for per-row offsets."""
    return relative_positions(T, S, offset) >= 0


def window(T: int, S: int, window: int, offset: Offset = None) -> Bool[Array, "..."]:
    """The band |i + offset - j| < window; with `causal`, the last `window` keys, the query's own position counted."""
    checks.integer("window", window, at_least=1)
    distance = relative_positions(T, S, offset)
    return jnp.abs(distance) < _representable(window, distance)


def chunk(T: int, S: int, chunk: int, offset: Offset = None) -> Bool[Array, "..."]:
    """Keys of the query's own chunk (Llama 4), floor division, so that negative positions have chunks too."""
    checks.integer("chunk", chunk, at_least=1)
    distance = relative_positions(T, S, offset)
    key_position = _last_axis(jnp.arange(S), distance.ndim)
    query_position = distance + key_position
    size = _representable(chunk, key_position)
    return query_position // size == key_position // size


def _last_axis(x: Integer[Array, "n"], axes: int) -> Array:
    """x as the last of so many axes: `jax_numpy_rank_promotion` may forbid to leave the others out."""
    return x.reshape((1,) * (axes - 1) + x.shape)


def _representable(size: int, positions: Integer[Array, "..."]) -> int:
    """Positions are 32-bit unless x64 is on; a window or chunk past their range hides nothing, nor does its end."""
    return min(int(size), np.iinfo(positions.dtype).max)


def padding(lengths: Integer[Array, "B"], S: int) -> Bool[Array, "B 1 1 S"]:
    """The first lengths[b] keys of row b."""
    return (jnp.arange(S)[None] < jnp.asarray(lengths, dtype=int)[:, None])[:, None, None, :]


def segments(query_ids: Integer[Array, "B T"], key_ids: Integer[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Keys of the query's own segment: packed sequences that must not see each other."""
    return (jnp.asarray(query_ids, dtype=int)[:, :, None] == jnp.asarray(key_ids, dtype=int)[:, None, :])[:, None]


def alibi_slopes(num_heads: int) -> Float[Array, "N"]:
    """The published slopes (Press et al. 2022, arXiv 2108.12409): 2^(-8 n / N), and their rule for other N."""
    checks.integer("num_heads", num_heads, symbol="N", at_least=1)
    power = 1 << (num_heads.bit_length() - 1)
    base = [2.0 ** (-8 * (n + 1) / power) for n in range(power)]
    between = [2.0 ** (-8 * (n + 1) / (2 * power)) for n in range(0, 2 * (num_heads - power), 2)]
    return jnp.array(base + between)


def alibi(num_heads: int, T: int, S: int, offset: Offset = None) -> Float[Array, "..."]:
    """-slope * |i + offset - j| in float32: (1, N, T, S), or (B, N, T, S) for per-row offsets."""
    slopes, distance = alibi_slopes(num_heads), jnp.abs(relative_positions(T, S, offset))
    distance = distance if distance.ndim == 4 else distance[None, None]
    return (-slopes[None, :, None, None] * distance.astype(slopes.dtype)).astype(jnp.float32)


def combine(*masks: Array) -> Array:
    """All masks at once: booleans AND, floats add (finite sums stay finite), False becomes -inf."""
    combined, *others = (as_array(mask) for mask in masks)
    for mask in others:
        combined = _both(combined, mask)
    return combined


def _both(a: Array, b: Array) -> Array:
    a, b = (x[None, None] if x.ndim == 2 and other.ndim == 4 else x for x, other in ((a, b), (b, a)))
    if a.dtype == bool and b.dtype == bool:
        return a & b
    a, b = (_as_bias(x, like=y) for x, y in ((a, b), (b, a)))
    with jax.numpy_dtype_promotion("standard"):  # two floating dtypes meet in the wider one
        total = a + b
    finite = jnp.isfinite(a) & jnp.isfinite(b)
    limits = jnp.finfo(total.dtype)
    return jnp.where(finite, jnp.clip(total, limits.min, limits.max), total)


def _as_bias(mask: Array, like: Array) -> Array:
    return jnp.where(mask, 0, -jnp.inf).astype(like.dtype) if mask.dtype == bool else mask


def split(mask: Array | None) -> tuple[Array | None, Array | None]:
    """A user's mask as (visible, bias), of 4 axes: a boolean has no bias; in a float -inf is invisible, else bias."""
    mask = mask[None, None] if mask is not None and mask.ndim == 2 else mask
    if mask is None or mask.dtype == bool:
        return mask, None
    visible = mask != -jnp.inf
    return visible, jnp.where(visible, mask, 0)


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
    return jnp.broadcast_to(visible, (*visible.shape[:2], T, S))


def key_range(T: int, S: int, settings: KernelSettings, offset: int) -> tuple[int, int]:
    """The slice of keys outside which no query sees any.

    It starts at the start of a chunk, so that chunks can be counted from there.
    """
    first, end, newest = 0, S, offset + T - 1
    if settings.causal:
        end = min(end, newest + 1)
    if settings.window is not None:
        first, end = max(first, offset - settings.window + 1), min(end, newest + settings.window)
    if settings.chunk is not None:
        chunk = settings.chunk
        first, end = max(first, offset) // chunk * chunk, min(end, (newest // chunk + 1) * chunk)
    first = min(first, S)
    return first, max(first, end)


def reach(
    position: Integer[Array, "t"], S: int, settings: KernelSettings
) -> tuple[Integer[Array, "t"], Integer[Array, "t"]]:
    """The first and the last key that a query at a position may see; none if last < first. Neither ever decreases."""
    first, last = jnp.zeros_like(position), jnp.full_like(position, S - 1)
    if settings.causal:
        last = jnp.minimum(last, position)
    if settings.window is not None:
        others = min(int(settings.window), np.iinfo(position.dtype).max // 2) - 1
        first, last = jnp.maximum(first, position - others), jnp.minimum(last, position + others)
    if settings.chunk is not None:
        size = min(int(settings.chunk), np.iinfo(position.dtype).max // 2)
        start = position // size * size
        first, last = jnp.maximum(first, start), jnp.minimum(last, start + size - 1)
    return first, last

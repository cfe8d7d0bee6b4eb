"""The fast path, taken when weights are not asked for: the same results in less time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gqa_numpy import masks
from gqa_numpy.plain import plain_attention
from gqa_numpy.precision import compute_dtype

Array = np.ndarray
BLOCK_QUERIES = 64  # enough rows for BLAS, few enough that a causal pass skips nearly half of its scores
BLOCK_SCORES = 2**22  # scores held at a time, 16 MiB in float32


def blocked_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    causal: bool,
    window: int | None,
    chunk: int | None,
    offset: masks.Offset,
    scale: Any,
    softcap: Any,
    sinks: Array | None,
    dropout_multiplier: Array | None,
) -> Float[Array, "B N T Hv"]:
    """A block of queries at a time, against the slice of keys that any of them may see.

    Invisible keys inside a slice are not scrubbed beforehand: only if a block comes out with inf or NaN is it computed
    again by the plain kernel, which scrubs.
    """
    (B, N, T, _), (S, Hv) = query.shape, value.shape[2:]
    context = np.empty((B, N, T, Hv), query.dtype)
    start_position = np.asarray(S - T if offset is None else offset)
    visible, bias = masks.split(mask)
    for rows, keys in _blocks(B * N, T, S, causal, window, chunk, start_position):
        seen = masks.visible_keys(
            rows.stop - rows.start, keys.stop - keys.start, _part(visible, rows, keys), causal, window, chunk,
            start_position + rows.start - keys.start,
        )  # fmt: skip
        block = (
            query[:, :, rows], key[:, :, keys], value[:, :, keys], seen, _part(bias, rows, keys), scale, softcap,
            sinks, _part(dropout_multiplier, rows, keys),
        )  # fmt: skip
        context[:, :, rows] = _fused(*block)
        if seen is not None and not np.isfinite(context[:, :, rows]).all():
            context[:, :, rows] = plain_attention(*block)["context"]
    return context


def _fused(
    query: Float[Array, "B N t H"],
    key: Float[Array, "B K s H"],
    value: Float[Array, "B K s Hv"],
    visible: Bool[Array, "b n t s"] | None,
    bias: Array | None,
    scale: Any,
    softcap: Any,
    sinks: Array | None,
    dropout_multiplier: Array | None,
) -> Float[Array, "B N t Hv"]:
    """The kernel in place: groups packed into the query axis, one buffer for scores, the division done last."""
    (B, N, T, H), (_, K, S, Hv), dtype = query.shape, value.shape, compute_dtype(query.dtype)
    packed = (query.astype(dtype) * dtype.type(scale)).reshape(B, K, N // K * T, H)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (packed @ key.astype(dtype, copy=False).swapaxes(2, 3)).reshape(B, N, T, S)
        if softcap is not None:
            scores /= dtype.type(softcap)
            np.tanh(scores, out=scores)
            scores *= dtype.type(softcap)
        if bias is not None:
            limits = np.finfo(dtype)
            scores += np.clip(bias, limits.min, limits.max).astype(dtype)
            np.maximum(scores, limits.min, out=scores)
        if visible is not None:
            partly = np.flatnonzero(~visible.all(axis=(0, 1, 2)))  # under a causal mask, a block's last keys alone
            edge = slice(partly.min(initial=S), partly.max(initial=-1) + 1)
            np.copyto(scores[..., edge], -np.inf, where=~visible[..., edge])
        peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        sees: Any = S > 0 if visible is None else visible.any(axis=-1, keepdims=True)
        sink = None if sinks is None else sinks.astype(dtype)[:, None, None]
        peak = np.where(sees, peak if sink is None else np.maximum(peak, sink), dtype.type(0))
        scores -= peak
        np.exp(scores, out=scores)
        total: Array = scores.sum(axis=-1, keepdims=True)
        total = total if sink is None else total + np.exp(sink - peak)
        total = np.where(sees, total, dtype.type(1))
        if dropout_multiplier is not None:
            scores *= dropout_multiplier.astype(dtype)
        context = (scores.reshape(B, K, N // K * T, S) @ value.astype(dtype, copy=False)).reshape(B, N, T, Hv)
        return np.where(sees, context / total, dtype.type(0)).astype(query.dtype)


def _blocks(
    heads: int, T: int, S: int, causal: bool, window: int | None, chunk: int | None, offset: Array
) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that one of its queries may see for the sake of its position."""
    size = max(min(BLOCK_SCORES // max(heads * S, 1), BLOCK_QUERIES), 1)
    for start in range(0, T, size):
        stop = min(start + size, T)
        nearest, farthest = int(offset.min(initial=S)) + start, int(offset.max(initial=-T)) + stop - 1
        first, last = 0, S
        if causal:
            last = min(last, farthest + 1)
        if window is not None:
            first, last = max(first, nearest - window + 1), min(last, farthest + window)
        if chunk is not None:
            first, last = max(first, nearest // chunk * chunk), min(last, (farthest // chunk + 1) * chunk)
            first = first // chunk * chunk  # chunks of a slice are counted from its first key
        last = max(last, 0)
        yield slice(start, stop), slice(min(first, last), last)


def _part(x: Array | None, rows: slice, keys: slice) -> Array | None:
    """A mask's block; its axes of size 1 stay as they are."""
    if x is None:
        return None
    x = x[..., rows, :] if x.shape[-2] > 1 else x
    return x[..., keys] if x.shape[-1] > 1 else x

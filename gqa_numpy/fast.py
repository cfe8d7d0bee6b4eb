"""The fast path, for calls that need no weights: the same results in less time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gqa_numpy import masks
from gqa_numpy.plain import plain_attention
from gqa_numpy.precision import compute_dtype
from gqa_spec.settings import KernelSettings

Array = np.ndarray
BLOCK_QUERIES = 64  # enough rows for BLAS, few enough that a causal pass skips nearly half of its scores
BLOCK_SCORES = 2**22  # scores held at a time, 16 MiB in float32


def blocked_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    block: int,
) -> Float[Array, "B N T Hv"]:
    """A block of queries at a time, against the slice of keys outside which they see none.

    Hidden keys inside a slice are not set to 0 at first. Only if a block's result holds inf or NaN is it computed again
    by the plain kernel, which sets them to 0.
    """
    (B, N, T, _), (S, Hv) = query.shape, value.shape[2:]
    context = np.empty((B, N, T, Hv), query.dtype)
    offset = np.asarray(S - T if settings.offset is None else settings.offset)
    visible, bias = masks.split(mask)
    for queries, keys in _blocks(T, S, settings, offset, block):
        count, position = queries.stop - queries.start, offset + queries.start - keys.start
        seen = masks.visible_keys(count, keys.stop - keys.start, _part(visible, queries, keys), settings, position)
        arguments = (
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            seen,
            _part(bias, queries, keys),
            settings,
            _part(settings.dropout_multiplier, queries, keys),
        )
        context[:, :, queries] = _fused(*arguments)
        if seen is not None and not np.isfinite(context[:, :, queries]).all():
            context[:, :, queries] = plain_attention(*arguments)["context"]
    return context


def _fused(
    query: Float[Array, "B N t H"],
    key: Float[Array, "B K s H"],
    value: Float[Array, "B K s Hv"],
    visible: Bool[Array, "b n t s"] | None,
    bias: Array | None,
    settings: KernelSettings,
    dropout_multiplier: Array | None,
) -> Float[Array, "B N t Hv"]:
    """The kernel in place: groups packed into the query axis, one buffer for scores, the division done last."""
    (B, N, T, H), (_, K, S, Hv), dtype = query.shape, value.shape, compute_dtype(query.dtype)
    packed = (query.astype(dtype) * dtype.type(settings.scale_for(H))).reshape(B, K, N // K * T, H)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (packed @ key.astype(dtype, copy=False).swapaxes(2, 3)).reshape(B, N, T, S)
        _mask_in_place(scores, visible, bias, settings.softcap)
        peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        sees: Any = S > 0 if visible is None else visible.any(axis=-1, keepdims=True)
        sink = None if settings.sinks is None else settings.sinks.astype(dtype)[:, None, None]
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


def _mask_in_place(
    scores: Float[Array, "B N t s"], visible: Bool[Array, "b n t s"] | None, bias: Array | None, softcap: Any
) -> None:
    """Scores become what the softmax is taken of (SPEC 2, 3)."""
    dtype = scores.dtype
    if softcap is not None:
        scores /= dtype.type(softcap)
        np.tanh(scores, out=scores)
        scores *= dtype.type(softcap)
    if bias is not None:
        limits = np.finfo(dtype)
        scores += np.clip(bias, limits.min, limits.max).astype(dtype)
        np.maximum(scores, limits.min, out=scores)
    if visible is not None:
        hidden = np.flatnonzero(~visible.all(axis=(0, 1, 2)))  # under a causal mask, only a block's last keys
        edge = slice(hidden.min(initial=scores.shape[3]), hidden.max(initial=-1) + 1)
        np.copyto(scores[..., edge], -np.inf, where=~visible[..., edge])


def _blocks(T: int, S: int, settings: KernelSettings, offset: Array, size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of `size` queries, each with the slice of keys outside which none of its queries sees any."""
    window, chunk = settings.window, settings.chunk
    for start in range(0, T, size):
        stop = min(start + size, T)
        nearest, farthest = int(offset.min(initial=S)) + start, int(offset.max(initial=-T)) + stop - 1
        first, last = 0, S
        if settings.causal:
            last = min(last, farthest + 1)
        if window is not None:
            first, last = max(first, nearest - window + 1), min(last, farthest + window)
        if chunk is not None:
            first, last = max(first, nearest // chunk * chunk), min(last, (farthest // chunk + 1) * chunk)
            first = first // chunk * chunk  # chunks of a slice are counted from its first key
        last = max(last, 0)
        yield slice(start, stop), slice(min(first, last), last)


def _part(x: Array | None, queries: slice, keys: slice) -> Array | None:
    """The part of a mask or multiplier for these queries and keys; an axis of size 1 is for all."""
    if x is None:
        return None
    x = x[..., queries, :] if x.shape[-2] > 1 else x
    return x[..., keys] if x.shape[-1] > 1 else x

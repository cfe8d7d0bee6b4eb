"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), as the specification reads. SPEC 1 to 9.

Query heads are folded into groups, (B, N, T, H) -> (B, K, G, T, H), so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gqa_numpy import masks
from gqa_numpy.precision import compute_dtype
from gqa_spec import checks

Array = np.ndarray


def grouped_query_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
    need_weights: bool = True,
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T S"] | None]:
    """Every query head n attends with KV head n // G.

    query, key, value: one floating dtype. mask: bool (True = may attend) or floating (added to the scores, -inf = may
    not), (T, S) or broadcastable to (B, N, T, S). causal, window (keys, the query's own counted), chunk (keys) and
    offset (positions, S - T by default; an integer or (B,)): SPEC 4. scale: H ** -0.5 by default. softcap: SPEC 2.
    sinks: one logit per query head, SPEC 8. dropout_multiplier: 0 or 1 / (1 - p), broadcastable to (B, N, T, S).

    Returns context and, with need_weights, the weights before dropout, both in the query's dtype.
    Raises ValueError for shapes and settings, TypeError for dtypes (SPEC 14).
    """
    settings: dict[str, Any] = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    if not need_weights:
        checks.attention(query, key, value, mask, Array, settings)
        return attend(query, key, value, mask, **settings), None
    stages = attention_stages(query, key, value, mask, **settings)
    return stages["context"], stages["weights"].astype(query.dtype)


def choose_path(need_weights: bool) -> str:
    """Which function computes a call: `plain` where weights are asked for, else `blocked` (gqa_numpy/fast.py)."""
    return "plain" if need_weights else "blocked"


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    *,
    scale: Any,
    **settings: Any,
) -> Float[Array, "B N T Hv"]:
    """The context alone, on arguments that have been validated."""
    from gqa_numpy.fast import blocked_attention  # which is built on the plain kernel below

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return blocked_attention(query, key, value, mask, scale=scale, **settings)


def attention_stages(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
) -> dict[str, Array]:
    """The plain computation, stage by stage: scores, capped (with a softcap), masked (-inf where invisible) and
    weights, all (B, N, T, S) in the compute dtype, then context (B, N, T, Hv) in the query's dtype.

    Arguments and errors as for `grouped_query_attention`.
    """
    settings = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    checks.attention(query, key, value, mask, Array, settings)
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(query.shape[2], key.shape[2], visible, causal, window, chunk, offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return plain_attention(query, key, value, visible, bias, scale, softcap, sinks, dropout_multiplier)


def plain_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    bias: Float[Array, "..."] | None,
    scale: Any,
    softcap: Any,
    sinks: Float[Array, "N"] | None,
    dropout_multiplier: Float[Array, "..."] | None,
) -> dict[str, Array]:
    """The kernel. `visible` has the axes of the weights, its first two of size 1 where they do not matter."""
    (B, N, T, H), (_, K, S, Hv), G = query.shape, value.shape, query.shape[1] // key.shape[1]
    dtype, stages = compute_dtype(query.dtype), {}
    if visible is not None:
        query, key, value = readable(query, key, value, visible)
    q, k, v = (x.astype(dtype) for x in (query.reshape(B, K, G, T, H), key, value))

    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN in a visible place are honoured, not warned of
        scores = np.einsum("bkgth,bksh->bkgts", q, k, optimize=True).reshape(B, N, T, S) * dtype.type(scale)
        stages["scores"] = masked = scores
        if softcap is not None:
            stages["capped"] = masked = dtype.type(softcap) * np.tanh(scores / dtype.type(softcap))
        if bias is not None:
            lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
            masked = np.maximum(masked + np.clip(bias, lowest, highest).astype(dtype), lowest)
        if visible is not None:
            masked = np.where(visible, masked, dtype.type(-np.inf))
        stages["masked"] = masked
        stages["weights"] = weights = softmax(masked, visible, sinks)

        kept = weights if dropout_multiplier is None else weights * dropout_multiplier.astype(dtype)
        rounded = kept.astype(query.dtype).astype(dtype).reshape(B, K, G, T, S)
        context = np.einsum("bkgts,bksv->bkgtv", rounded, v, optimize=True).reshape(B, N, T, Hv)
    stages["context"] = context.astype(query.dtype)
    return stages


def softmax(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys, the sink in the denominator alone; a row that sees no key is 0 (SPEC 5, 8)."""
    peak = masked.max(axis=-1, keepdims=True, initial=-np.inf)
    sees: Any = masked.shape[-1] > 0 if visible is None else visible.any(axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(masked.dtype)[:, None, None]
        peak = np.maximum(peak, sink)
    peak = np.where(sees, peak, masked.dtype.type(0))
    weights = np.exp(masked - peak)
    total: Array = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - peak)
    return weights / np.where(sees, total, masked.dtype.type(1))


def readable(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"],
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """0 for keys and values that no query of their KV head may see, and for queries that see none (SPEC 5, 6).

    Masking the scores alone would let their NaN through: 0 * NaN is NaN, in the products and in every gradient.
    """
    b, n, T, S = visible.shape
    K = key.shape[1] if n > 1 else 1
    key_is_seen = np.expand_dims(visible.reshape(b, K, n // K, T, S).any(axis=(2, 3)), -1)
    query_sees = visible.any(axis=-1, keepdims=True)
    zero = query.dtype.type(0)
    return np.where(query_sees, query, zero), np.where(key_is_seen, key, zero), np.where(key_is_seen, value, zero)

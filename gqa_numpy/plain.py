"""The plain kernel: grouped-query attention stage by stage, in the order of the specification. SPEC 1 to 9.

Query heads are folded into groups, (B, N, T, H) -> (B, K, G, T, H), so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gqa_numpy.precision import compute_dtype
from gqa_spec.settings import KernelSettings

Array = np.ndarray


def plain_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    bias: Float[Array, "..."] | None,
    settings: KernelSettings,
    dropout_multiplier: Float[Array, "..."] | None,
) -> dict[str, Array]:
    """The kernel: every stage, from the scores to the context.

    `visible` has the axes of the weights, its first two of size 1 where they do not matter. Of the settings, scale,
    softcap and sinks are used.
    """
    (B, N, T, H), (_, K, S, Hv), G = query.shape, value.shape, query.shape[1] // key.shape[1]
    dtype, stages, softcap = compute_dtype(query.dtype), {}, settings.softcap
    if visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)
    q, k, v = (x.astype(dtype, copy=False) for x in (query.reshape(B, K, G, T, H), key, value))

    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN in a visible place are honoured, not warned of
        scores = np.einsum("bkgth,bksh->bkgts", q, k, optimize=True).reshape(B, N, T, S) * dtype.type(
            settings.scale_for(H)
        )
        stages["scores"] = masked = scores
        if softcap is not None:
            stages["capped"] = masked = dtype.type(softcap) * np.tanh(scores / dtype.type(softcap))
        if bias is not None:
            lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
            masked = np.maximum(masked + np.clip(bias, lowest, highest).astype(dtype), lowest)
        if visible is not None:
            masked = np.where(visible, masked, dtype.type(-np.inf))
        stages["masked"] = masked
        stages["weights"] = weights = softmax(masked, visible, settings.sinks)

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


def logsumexp(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T"]:
    """The logarithm of the softmax's denominator, the sink included; -inf for a row that sees no key (SPEC 8)."""
    peak = masked.max(axis=-1, initial=-np.inf)
    sees: Any = np.asarray(masked.shape[-1] > 0) if visible is None else visible.any(axis=-1)
    if sinks is not None:
        sink = sinks.astype(masked.dtype)[:, None]
        peak = np.maximum(peak, sink)
    peak = np.where(sees, peak, masked.dtype.type(0))
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.exp(masked - peak[..., None]).sum(axis=-1)
        total = total if sinks is None else total + np.exp(sink - peak)
        total = np.where(sees, total, masked.dtype.type(1))
        return np.where(sees, peak + np.log(total), masked.dtype.type(-np.inf))


def zero_hidden(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"],
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """query, key and value with 0 for keys that no query of their KV head sees, and for queries that see no key.

    SPEC 5 and 6. Masking the scores alone would let a NaN through: 0 * NaN is NaN, in products and in gradients.
    """
    b, n, T, S = visible.shape
    K = key.shape[1] if n > 1 else 1
    key_is_seen = np.expand_dims(visible.reshape(b, K, n // K, T, S).any(axis=(2, 3)), -1)
    query_sees = visible.any(axis=-1, keepdims=True)
    zero = query.dtype.type(0)
    return np.where(query_sees, query, zero), np.where(key_is_seen, key, zero), np.where(key_is_seen, value, zero)

"""The plain kernel: grouped-query attention stage by stage, in the order of the specification. SPEC 1 to 9.

The query heads of a group are packed as rows of one matrix, (B, N, T, H) -> (B, K, G T, H), so that keys and values are
never repeated.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec.settings import KernelSettings


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
    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    if visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)

    products = jnp.einsum("bkph,bksh->bkps", query.reshape(B, K, G * T, H), key, **wide).reshape(B, N, T, S)
    stages["scores"] = masked = scores = products * jnp.asarray(settings.scale_for(H), dtype)
    if softcap is not None:
        softcap = jnp.asarray(softcap, dtype)
        stages["capped"] = masked = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
        masked = masked + jnp.clip(bias.astype(dtype), lowest, highest)
        masked = jnp.where(masked <= lowest, lowest, masked)  # not maximum, which passes half a gradient there
    if visible is not None:
        masked = jnp.where(visible, masked, -jnp.inf)
    stages["masked"] = masked
    stages["weights"] = weights = softmax(masked, visible, settings.sinks)

    kept = weights if dropout_multiplier is None else weights * dropout_multiplier.astype(dtype)
    rounded = kept.astype(query.dtype).reshape(B, K, G * T, S)
    context = jnp.einsum("bkps,bksv->bkpv", rounded, value, **wide).reshape(B, N, T, Hv)
    stages["context"] = context.astype(query.dtype)
    return stages


def softmax(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys, the sink in the denominator alone; a row that sees no key is 0 (SPEC 5, 8)."""
    exponentials, total, _, _ = _exponentials(masked, visible, sinks)
    return exponentials / total


def logsumexp(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T"]:
    """The logarithm of the softmax's denominator, the sink included; -inf for a row that sees no key (SPEC 8)."""
    _, total, peak, sees = _exponentials(masked, visible, sinks)
    return jnp.where(sees, peak + jnp.log(total), -jnp.inf)[..., 0]


def _exponentials(masked: Array, visible: Array | None, sinks: Array | None) -> tuple[Array, Array, Array, Any]:
    """exp(masked - peak), their sum with the sink, the peak, and which rows see a key.

    In a row that sees none, the sink's exponent and the sum are replaced: else the sink's gradient is 0 * inf.
    """
    peak = lax.stop_gradient(masked).max(axis=-1, keepdims=True, initial=-jnp.inf)
    sees: Any = masked.shape[-1] > 0 if visible is None else visible.any(axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(masked.dtype)[None, :, None, None]
        peak = jnp.maximum(peak, lax.stop_gradient(sink))
    peak = jnp.where(sees, peak, 0)
    exponentials = jnp.exp(masked - peak)
    total = exponentials.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(jnp.where(sees, sink - peak, 0))
    return exponentials, jnp.where(sees, total, 1), peak, sees


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
    key_is_seen = jnp.expand_dims(visible.reshape(b, K, n // K, T, S).any(axis=(2, 3)), -1)
    query_sees = visible.any(axis=-1, keepdims=True)
    return jnp.where(query_sees, query, 0), jnp.where(key_is_seen, key, 0), jnp.where(key_is_seen, value, 0)

"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), as the specification reads. SPEC 1 to 9.

The query heads of a group are packed as rows of one matrix, (B, N, T, H) -> (B, K, G T, H), so that keys and values are
never repeated.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from gqa_jax import masks
from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec import checks

PACKED_ROWS = 64  # queries times heads of a group: up to here, reading keys and values takes longer than computing
PACKED_WEIGHTS = 2**22  # 16 MiB in float32


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


def choose_path(
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
) -> str:
    """How `grouped_query_attention` computes this call: the one place that decides, by shapes and settings alone.

    "plain": `plain_attention`. "packed" and "blocked": `packed_attention` and `blocked_attention` of `fast`.
    """
    (B, N, T, _), (K, S) = query.shape, key.shape[1:3]
    if need_weights or 0 in (B, T, S):
        return "plain"
    rows = N // K * T
    if rows > PACKED_ROWS and B * K * rows * S > PACKED_WEIGHTS:
        return "blocked"
    within = min(size for size in (window, chunk, S) if size is not None)
    if isinstance(offset, Array) and causal and 4 * (within + T) < S:
        return "blocked"  # which skips keys out of reach; packed could only mask them
    return "packed"


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    *,
    clean: bool = False,
    **settings: Any,
) -> Float[Array, "B N T Hv"]:
    """The context alone, by the path that `choose_path` names. clean: no key or value is inf or NaN."""
    from gqa_jax import fast  # which is built on parts of the plain kernel below

    path = choose_path(query, key, value, mask, **settings, need_weights=False)
    if path == "plain":
        return attention_stages(query, key, value, mask, **settings)["context"]
    settings["scale"] = query.shape[-1] ** -0.5 if settings["scale"] is None else settings["scale"]
    if path == "packed":
        return fast.packed_attention(query, key, value, mask, **settings, clean=clean)
    return fast.blocked_attention(query, key, value, mask, **settings)


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
    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    if visible is not None:
        query, key, value = readable(query, key, value, visible)

    products = jnp.einsum("bkph,bksh->bkps", query.reshape(B, K, G * T, H), key, **wide).reshape(B, N, T, S)
    stages["scores"] = masked = scores = products * jnp.asarray(scale, dtype)
    if softcap is not None:
        softcap = jnp.asarray(softcap, dtype)
        stages["capped"] = masked = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
        masked = jnp.maximum(masked + jnp.clip(bias.astype(dtype), lowest, highest), lowest)
    if visible is not None:
        masked = jnp.where(visible, masked, -jnp.inf)
    stages["masked"] = masked
    stages["weights"] = weights = softmax(masked, visible, sinks)

    kept = weights if dropout_multiplier is None else weights * dropout_multiplier.astype(dtype)
    rounded = kept.astype(query.dtype).reshape(B, K, G * T, S)
    context = jnp.einsum("bkps,bksv->bkpv", rounded, value, **wide).reshape(B, N, T, Hv)
    stages["context"] = context.astype(query.dtype)
    return stages


def softmax(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys, the sink in the denominator alone; a row that sees no key is 0 (SPEC 5, 8).

    What a row without keys would make of its sink is replaced before exp and after: else its gradient is 0 * inf.
    """
    peak = lax.stop_gradient(masked).max(axis=-1, keepdims=True, initial=-jnp.inf)
    sees: Any = masked.shape[-1] > 0 if visible is None else visible.any(axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(masked.dtype)[:, None, None]
        peak = jnp.maximum(peak, lax.stop_gradient(sink))
    peak = jnp.where(sees, peak, 0)
    weights = jnp.exp(masked - peak)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(jnp.where(sees, sink - peak, 0))
    return weights / jnp.where(sees, total, 1)


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
    key_is_seen = jnp.expand_dims(visible.reshape(b, K, n // K, T, S).any(axis=(2, 3)), -1)
    query_sees = visible.any(axis=-1, keepdims=True)
    return jnp.where(query_sees, query, 0), jnp.where(key_is_seen, key, 0), jnp.where(key_is_seen, value, 0)

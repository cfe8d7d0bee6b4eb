"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from typing import Any

from jax import Array
from jaxtyping import Float

from gqa_jax import fast, masks
from gqa_jax.plain import plain_attention
from gqa_spec import checks
from gqa_spec.settings import KernelSettings

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
        checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
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
    path = choose_path(query, key, value, mask, **settings, need_weights=False)
    if path == "plain":
        return attention_stages(query, key, value, mask, **settings)["context"]
    settings["scale"] = query.shape[-1] ** -0.5 if settings["scale"] is None else settings["scale"]
    if path == "packed":
        return fast.packed_attention(query, key, value, mask, **settings, clean=clean)
    sizes = {"block_rows": fast.BLOCK_ROWS, "block_keys": fast.BLOCK_KEYS}
    return fast.blocked_attention(query, key, value, mask, **settings, **sizes)


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
    settings: dict[str, Any] = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(query.shape[2], key.shape[2], visible, causal, window, chunk, offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return plain_attention(query, key, value, visible, bias, scale, softcap, sinks, dropout_multiplier)

"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from gqa_numpy import masks
from gqa_numpy.fast import blocked_attention
from gqa_numpy.plain import plain_attention
from gqa_spec import checks
from gqa_spec.settings import KernelSettings

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
    if choose_path(need_weights) == "blocked":
        checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
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
    settings: dict[str, Any] = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(query.shape[2], key.shape[2], visible, causal, window, chunk, offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return plain_attention(query, key, value, visible, bias, scale, softcap, sinks, dropout_multiplier)

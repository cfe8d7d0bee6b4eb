"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gqa_numpy import fast, masks
from gqa_numpy.fast import blocked_attention
from gqa_numpy.plain import logsumexp, plain_attention
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
    """Attend from each query head n to KV head n // G, G = N / K.

    Args:
        query: (B, N, T, H), of the same floating dtype as key and value.
        key: (B, K, S, H); K divides N.
        value: (B, K, S, Hv).
        mask: bool (True = may attend) or floating (added to the scores, -inf = may not), (T, S) or broadcastable to
            (B, N, T, S).
        causal: Query i sees key j only if j <= i + offset.
        window: Query i sees only keys with |i + offset - j| < window.
        chunk: Query i sees only keys of the same chunk, (i + offset) // chunk == j // chunk.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        scale: Factor on query . key; H ** -0.5 by default.
        softcap: Scores become softcap * tanh(scores / softcap).
        sinks: One logit for each query head, (N,), in the softmax's denominator only.
        dropout_multiplier: 0 or 1 / (1 - p) for each weight, broadcastable to (B, N, T, S).
        need_weights: Whether to return the weights. Without them, a faster kernel is used.

    Returns:
        The context (B, N, T, Hv) and the weights before dropout (B, N, T, S), or None for these, both in the query's
        dtype.

    Raises:
        ValueError: For a wrong shape or setting (SPEC 14).
        TypeError: For a wrong type or dtype.
    """
    settings = KernelSettings(
        causal=causal,
        window=window,
        chunk=chunk,
        offset=offset,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )
    return attention(query, key, value, mask, settings, need_weights=need_weights)


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
    """Compute attention plainly and return every stage.

    Args:
        query, key, value, mask, causal, window, chunk, offset, scale, softcap, sinks, dropout_multiplier: As for
            `grouped_query_attention`.

    Returns:
        scores, capped (with a softcap), masked (-inf where invisible) and weights, all (B, N, T, S), and logsumexp
        (B, N, T), the logarithm of the softmax's denominator, in the compute dtype; context (B, N, T, Hv) in the
        query's dtype.

    Raises:
        ValueError: For a wrong shape or setting (SPEC 14).
        TypeError: For a wrong type or dtype.
    """
    settings = KernelSettings(
        causal=causal,
        window=window,
        chunk=chunk,
        offset=offset,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )
    return stages_of(query, key, value, mask, settings)


def merge(
    contexts: Sequence[Float[Array, "B N T Hv"]], logsumexps: Sequence[Float[Array, "B N T"]]
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T"]]:
    """Combine attention over parts of the keys into attention over all of them.

    Args:
        contexts: The context over each part, (B, N, T, Hv).
        logsumexps: The logsumexp over each part, (B, N, T), as `attention_stages` gives it. A sink is in the
            denominator once: give it to one of the parts.

    Returns:
        The context (B, N, T, Hv), in the dtype of the contexts, and the logsumexp (B, N, T) over all keys.

    Raises:
        ValueError: For a wrong number of arrays or a wrong shape.
        TypeError: For a wrong type or dtype.
    """
    checks.parts(contexts, logsumexps, Array)
    parts, dtype = np.stack(logsumexps), logsumexps[0].dtype
    peak = parts.max(axis=0)
    peak = np.where(peak == -np.inf, dtype.type(0), peak)
    shares = np.exp(parts - peak)
    total = shares.sum(axis=0)
    sees = total > 0
    total = np.where(sees, total, dtype.type(1))
    context = sum((share / total)[..., None] * x.astype(dtype) for share, x in zip(shares, contexts, strict=True))
    return context.astype(contexts[0].dtype), np.where(sees, peak + np.log(total), dtype.type(-np.inf))


def attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    need_weights: bool,
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T S"] | None]:
    """`grouped_query_attention`, its settings in one object."""
    if not need_weights:
        checks.attention(query, key, value, mask, Array, settings)
        return attend(query, key, value, mask, settings), None
    stages = stages_of(query, key, value, mask, settings)
    return stages["context"], stages["weights"].astype(query.dtype)


def stages_of(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> dict[str, Array]:
    """`attention_stages`, its settings in one object."""
    checks.attention(query, key, value, mask, Array, settings)
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(query.shape[2], key.shape[2], visible, settings, settings.offset)
    stages = plain_attention(query, key, value, visible, bias, settings, settings.dropout_multiplier)
    context = stages.pop("context")
    return stages | {"logsumexp": logsumexp(stages["masked"], visible, settings.sinks), "context": context}


# query, key, value, mask, settings, queries in a block -> context
Kernel = Callable[[Array, Array, Array, Array | None, KernelSettings, int], Array]


@dataclass(frozen=True, eq=False)
class Path:
    """How one call is computed: by which kernel, and how many queries at a time."""

    name: str
    kernel: Kernel
    block: int


def choose_path(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> Path:
    """The path of a call that needs no weights: always `blocked`, in blocks that bound the scores held at a time."""
    (B, N, _, _), S = query.shape, key.shape[2]
    block = min(fast.BLOCK_SCORES // max(B * N * S, 1), fast.BLOCK_QUERIES)
    return Path("blocked", blocked_attention, max(block, 1))


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> Float[Array, "B N T Hv"]:
    """The context alone, by the path that `choose_path` returns; the arguments have been checked."""
    path = choose_path(query, key, value, mask, settings)
    return path.kernel(query, key, value, mask, settings, path.block)

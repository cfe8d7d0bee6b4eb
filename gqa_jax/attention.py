"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from gqa_jax import fast, masks
from gqa_jax.arrays import as_array, check_sharding
from gqa_jax.plain import logsumexp, plain_attention
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
    contexts, logsumexps = [as_array(x) for x in contexts], [as_array(x) for x in logsumexps]
    checks.parts(contexts, logsumexps, Array)
    parts, dtype = jnp.stack(logsumexps), logsumexps[0].dtype
    peak = lax.stop_gradient(parts.max(axis=0))
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    shares = jnp.exp(parts - peak[None])
    total = shares.sum(axis=0)
    sees = total > 0
    total = jnp.where(sees, total, 1)
    context = ((shares / total[None])[..., None] * jnp.stack(contexts).astype(dtype)).sum(axis=0)
    return context.astype(contexts[0].dtype), jnp.where(sees, peak + jnp.log(total), -jnp.inf)


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
    query, key, value, mask, settings = jax.tree.map(as_array, (query, key, value, mask, settings))
    check_sharding("query", query)
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
    query, key, value, mask, settings = jax.tree.map(as_array, (query, key, value, mask, settings))
    check_sharding("query", query)
    checks.attention(query, key, value, mask, Array, settings)
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(query.shape[2], key.shape[2], visible, settings, settings.offset)
    stages = plain_attention(query, key, value, visible, bias, settings, settings.dropout_multiplier)
    context = stages.pop("context")
    return stages | {"logsumexp": logsumexp(stages["masked"], visible, settings.sinks), "context": context}


# query, key, value, mask, settings -> context
Kernel = Callable[[Array, Array, Array, Array | None, KernelSettings], Array]


@dataclass(frozen=True, eq=False)
class Path:
    """How one call is computed: the kernel, with the sizes of its blocks bound to it."""

    name: str
    kernel: Kernel


def choose_path(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    finite_keys: bool = False,
) -> Path:
    """The path of a call that needs no weights: the one place that decides, by shapes and settings alone.

    finite_keys: the caller has made sure that no key or value is inf or NaN.
    """
    (B, N, T, _), (K, S) = query.shape, key.shape[1:3]
    symbolic = not all(isinstance(size, int) for size in (B, T, S))  # in jax.export: one program for every length
    if symbolic or 0 in (B, T, S):
        return Path("plain", plain_context)
    rows = N // K * T
    visible_keys = min(size for size in (settings.window, settings.chunk, S) if size is not None)
    large = rows > PACKED_ROWS and B * K * rows * S > PACKED_WEIGHTS
    # blocked skips keys out of reach of an offset that is an array, where packed can only mask them
    mostly_hidden = isinstance(settings.offset, Array) and settings.causal and 4 * (visible_keys + T) < S
    if large or mostly_hidden:
        sizes = {"block_rows": fast.BLOCK_ROWS, "block_keys": fast.BLOCK_KEYS}
        return Path("blocked", partial(fast.blocked_attention, **sizes))
    return Path("packed", partial(fast.packed_attention, finite_keys=finite_keys))


def plain_context(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> Float[Array, "B N T Hv"]:
    return stages_of(query, key, value, mask, settings)["context"]


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    finite_keys: bool = False,
) -> Float[Array, "B N T Hv"]:
    """The context alone, by the path that `choose_path` returns; the arguments have been checked."""
    path = choose_path(query, key, value, mask, settings, finite_keys=finite_keys)
    return path.kernel(query, key, value, mask, settings)

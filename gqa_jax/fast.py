"""The fast paths, taken when weights are not asked for. `gqa_jax.attention.choose_path` chooses.

Pure, on arguments already validated, and with every setting that the plain kernel has. Each key and value is read once
for all query heads of its group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from gqa_jax import masks
from gqa_jax.plain import softmax, zero_hidden
from gqa_jax.precision import compute_dtype, matmul_precision

State = tuple[Array, Array, Array, Array]  # of a softmax: peak, total, whether any key was visible, context
FEW_ROWS = 32
BLOCK_ROWS = 1024  # rows of one block of scores: its queries times the heads of a group
BLOCK_KEYS = 256  # such a block, 1 MiB in float32, stays in a core's cache from one product to the next


def packed_attention(
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
    clean: bool,
) -> Float[Array, "B N T Hv"]:
    """A few queries: the heads of a group become rows of one matrix.

    Keys that a static offset hides from all queries are cut off, so that only a mask or an array as offset leaves any
    to scrub. clean: no key or value is inf or NaN, so none needs to be scrubbed.
    """
    (B, N, T, H), (K, S, Hv), dtype = query.shape, value.shape[1:], compute_dtype(query.dtype)
    rule = (causal, window, chunk)
    if offset is None or isinstance(offset, int | np.integer):
        start = S - T if offset is None else int(offset)
        first, end = masks.key_range(T, S, *rule, start)
        key, value, offset, S = key[:, :, first:end], value[:, :, first:end], start - first, end - first
        mask, dropout_multiplier = (
            x[..., first:end] if x is not None and x.shape[-1] > 1 else x for x in (mask, dropout_multiplier)
        )
        clean = clean or mask is None
        if T == 1 and None in (window, chunk):  # one query sees the whole of its range
            rule = (False, None, None)
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(T, S, visible, *rule, offset)
    if visible is not None and clean:
        query = jnp.where(visible.any(axis=-1, keepdims=True), query, 0)
    elif visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)

    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    rows = query.reshape(B, K, N // K * T, H)
    if rows.shape[2] <= FEW_ROWS:  # XLA's CPU product is faster with the far longer operand on the left
        products = jnp.einsum("bksh,bkph->bksp", key, rows, **wide).swapaxes(2, 3)
    else:
        products = jnp.einsum("bkph,bksh->bkps", rows, key, **wide)
    weights = softmax(_masked(products.reshape(B, N, T, S), visible, bias, scale, softcap), visible, sinks)
    kept = weights if dropout_multiplier is None else weights * dropout_multiplier.astype(dtype)
    rounded = kept.astype(query.dtype).reshape(B, K, N // K * T, S)
    return jnp.einsum("bkps,bksv->bkpv", rounded, value, **wide).reshape(B, N, T, Hv).astype(query.dtype)


@partial(jax.jit, static_argnames=("causal", "window", "chunk", "block_rows", "block_keys"))
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
    block_rows: int,
    block_keys: int,
) -> Float[Array, "B N T Hv"]:
    """A block of the queries of one KV head at a time, against one block of keys after the other, the softmax carried
    along (Milakov & Gimelshein 2018, arXiv 1805.02867). Blocks out of reach are skipped, traced offset or not.

    XLA sees the loops as loops: unrolled, all blocks would be alive at once. A gradient computes each block anew.
    """
    (B, N, T, H), (K, S, Hv), G = query.shape, value.shape[1:], query.shape[1] // key.shape[1]
    t, s, dtype = min(T, max(block_rows // G, 1)), min(S, block_keys), compute_dtype(query.dtype)
    starts = jnp.broadcast_to(jnp.asarray(S - T if offset is None else offset, dtype=int), (B,))
    mask = mask[None, None] if mask is not None and mask.ndim == 2 else mask
    sinks = jnp.full(N, -jnp.inf, dtype) if sinks is None else sinks.astype(dtype)
    if query.dtype == dtype:  # no digit is lost by scaling queries, and a pass over all scores is saved
        query, scale = query * jnp.asarray(scale, dtype), None

    def head(inputs: tuple[Array, Array, Array, Array]) -> Float[Array, "G T Hv"]:
        index, q, k, v = inputs
        b, n = index // K, index % K * G
        sink = lax.dynamic_slice_in_dim(sinks, n, G)[:, None, None]

        def queries(i: Array) -> Float[Array, "G t Hv"]:
            q_block = lax.dynamic_slice_in_dim(q, i, t, axis=1)
            first, last = masks.reach(starts[b] + i + jnp.arange(t), S, causal, window, chunk)

            def keys(state: State, nominal: Array) -> tuple[State, None]:
                j = jnp.minimum(nominal, S - s)  # the last block overlaps the one before it
                place = jnp.arange(s) + j

                def attended(state: State, whole: bool) -> State:
                    k_block, v_block = (lax.dynamic_slice_in_dim(x, j, s) for x in (k, v))
                    given, multiplier = (_part(x, (b, n, i, j), (1, G, t, s)) for x in (mask, dropout_multiplier))
                    reached = (place >= jnp.maximum(first[:, None], nominal)) & (place <= last[:, None])
                    hides = None if whole else reached
                    return _carried(state, q_block, k_block, v_block, given, hides, scale, softcap, multiplier)

                steps: list[Any] = [lambda state: state, partial(attended, whole=False)]
                case = jnp.where((place[-1] < first[0]) | (nominal > last[-1]), 0, 1)
                if mask is None:  # most blocks of a causal pass hide nothing
                    steps.append(partial(attended, whole=True))
                    case = jnp.where((first[-1] <= j) & (place[-1] <= last[0]) & (j == nominal), 2, case)
                return lax.switch(case, steps, state), None

            lowest = jnp.full((G, t, 1), np.finfo(dtype).min)
            peak = jnp.maximum(lowest, lax.stop_gradient(sink))
            state = peak, jnp.exp(sink - peak), jnp.zeros((G, t, 1), bool), jnp.zeros((G, t, Hv), dtype)
            (_, total, sees, context), _ = lax.scan(keys, state, jnp.arange(0, S, s))
            return (context / jnp.where(sees, total, 1)).astype(query.dtype)

        block_starts = jnp.minimum(jnp.arange(0, T, t), T - t)
        blocks = lax.map(jax.checkpoint(queries, prevent_cse=False), block_starts)
        before = blocks[:-1].swapaxes(0, 1).reshape(G, (len(blocks) - 1) * t, Hv)
        return jnp.concatenate([before, blocks[-1, :, len(blocks) * t - T :]], axis=1)

    heads = query.reshape(B * K, G, T, H), key.reshape(B * K, S, H), value.reshape(B * K, S, Hv)
    return lax.map(head, (jnp.arange(B * K), *heads)).reshape(B, N, T, Hv)


def _carried(
    state: State,
    query: Float[Array, "G t H"],
    key: Float[Array, "s H"],
    value: Float[Array, "s Hv"],
    mask: Array | None,
    reached: Bool[Array, "t s"] | None,
    scale: Any,
    softcap: Any,
    dropout_multiplier: Array | None,
) -> State:
    """The state of a softmax that has seen one more block of keys."""
    peak, total, sees, context = state
    (G, t, H), s, dtype = query.shape, len(key), context.dtype
    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    visible, bias = masks.split(mask)
    if reached is not None:
        visible = jnp.broadcast_to(reached, (1, 1, t, s)) if visible is None else visible & reached
        (query,), ((key,),), ((value,),) = zero_hidden(query[None], key[None, None], value[None, None], visible)
        visible = visible[0]

    products = jnp.einsum("ph,sh->ps", query.reshape(G * t, H), key, **wide).reshape(G, t, s)
    masked = _masked(products, visible, None if bias is None else bias[0], scale, softcap)
    highest = jnp.maximum(peak, lax.stop_gradient(masked).max(axis=-1, keepdims=True))
    weights = lax.optimization_barrier(jnp.exp(masked - highest))  # else XLA's CPU takes exp anew for each use
    shrunk = jnp.exp(peak - highest)
    kept = weights if dropout_multiplier is None else weights * dropout_multiplier[0].astype(dtype)
    added = jnp.einsum("ps,sv->pv", kept.astype(query.dtype).reshape(G * t, s), value, **wide).reshape(context.shape)
    sees = sees | (True if visible is None else visible.any(axis=-1, keepdims=True))
    return highest, total * shrunk + weights.sum(axis=-1, keepdims=True), sees, context * shrunk + added


def _masked(products: Array, visible: Array | None, bias: Array | None, scale: Any, softcap: Any) -> Array:
    """From products of queries and keys to what the softmax is taken of (SPEC 2, 3)."""
    dtype = products.dtype
    scores = products if scale is None else products * jnp.asarray(scale, dtype)
    if softcap is not None:
        softcap = jnp.asarray(softcap, dtype)
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
        scores = scores + jnp.clip(bias.astype(dtype), lowest, highest)
        scores = jnp.where(scores <= lowest, lowest, scores)
    return scores if visible is None else jnp.where(visible, scores, -jnp.inf)


def _part(x: Array | None, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array | None:
    """A block of a mask or multiplier, (1, g, t, s); axes of size 1 stay as they are."""
    if x is None:
        return None
    starts = tuple(0 if full == 1 else start for full, start in zip(x.shape, starts, strict=True))
    sizes = tuple(1 if full == 1 else size for full, size in zip(x.shape, sizes, strict=True))
    return lax.dynamic_slice(x, starts, sizes)

"""The fast paths, for calls that need no weights. `gqa_jax.attention.choose_path` chooses.

All are pure, take arguments that have been checked, and have every setting that the plain kernel has. Each key and
value is read once for all query heads of its group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Integer

from gqa_jax import masks
from gqa_jax.plain import softmax, zero_hidden
from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec.settings import KernelSettings

FEW_ROWS = 32
BLOCK_ROWS = 1024  # rows of one block of scores: its queries times the heads of a group
BLOCK_KEYS = 256  # such a block, 1 MiB in float32, stays in a core's cache from one product to the next


def packed_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    finite_keys: bool,
) -> Float[Array, "B N T Hv"]:
    """A few queries: the heads of a group become rows of one matrix.

    Keys that a static offset hides from all queries are cut off, so that hidden ones remain only under a mask or an
    array as offset. finite_keys: no key or value is inf or NaN, so none needs to be set to 0.
    """
    if settings.offset is None or isinstance(settings.offset, int | np.integer):
        finite_keys = finite_keys or mask is None
        key, value, mask, settings = _sliced(query.shape[2], key, value, mask, settings)
    (B, N, T, H), (K, S, Hv), dtype = query.shape, value.shape[1:], compute_dtype(query.dtype)
    visible, bias = masks.split(mask)
    visible = masks.visible_keys(T, S, visible, settings, settings.offset)
    if visible is not None and finite_keys:
        query = jnp.where(visible.any(axis=-1, keepdims=True), query, 0)
    elif visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)

    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    rows = query.reshape(B, K, N // K * T, H)
    if rows.shape[2] <= FEW_ROWS:  # XLA's CPU product is faster with the far longer operand on the left
        products = jnp.einsum("bksh,bkph->bksp", key, rows, **wide).swapaxes(2, 3)
    else:
        products = jnp.einsum("bkph,bksh->bkps", rows, key, **wide)
    scale, multiplier = settings.scale_for(H), settings.dropout_multiplier
    masked = _masked(products.reshape(B, N, T, S), visible, bias, scale, settings.softcap)
    weights = softmax(masked, visible, settings.sinks)
    kept = weights if multiplier is None else weights * multiplier.astype(dtype)
    rounded = kept.astype(query.dtype).reshape(B, K, N // K * T, S)
    return jnp.einsum("bkps,bksv->bkpv", rounded, value, **wide).reshape(B, N, T, Hv).astype(query.dtype)


def _sliced(
    T: int, key: Array, value: Array, mask: Array | None, settings: KernelSettings
) -> tuple[Array, Array, Array | None, KernelSettings]:
    """key, value, mask and settings without the keys that positions hide from all of T queries."""
    S = key.shape[2]
    offset = S - T if settings.offset is None else int(settings.offset)
    first, end = masks.key_range(T, S, settings, offset)
    mask, multiplier = (
        x[..., first:end] if x is not None and x.shape[-1] > 1 else x for x in (mask, settings.dropout_multiplier)
    )
    settings = replace(settings, offset=offset - first, dropout_multiplier=multiplier)
    if T == 1 and not settings.window_and_chunk:  # the slice of a single query holds no hidden key
        settings = replace(settings, causal=False, window=None, chunk=None)
    return key[:, :, first:end], value[:, :, first:end], mask, settings


@partial(jax.jit, static_argnames=("block_rows", "block_keys"))
def blocked_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    block_rows: int,
    block_keys: int,
) -> Float[Array, "B N T Hv"]:
    """A block of the queries of one KV head at a time, against one block of keys after the other, by an online softmax
    (Milakov & Gimelshein 2018, arXiv 1805.02867). Blocks out of reach are skipped, traced offset or not.

    XLA compiles the loops as loops: unrolled, all blocks would be in memory at once. A gradient computes each anew.
    """
    (B, N, T, H), (K, S, Hv), G = query.shape, value.shape[1:], query.shape[1] // key.shape[1]
    dtype, offset, sinks = compute_dtype(query.dtype), settings.offset, settings.sinks
    settings = replace(
        settings,
        scale=settings.scale_for(H),
        offset=jnp.broadcast_to(jnp.asarray(S - T if offset is None else offset, dtype=int), (B,)),
        sinks=jnp.full(N, -jnp.inf, dtype) if sinks is None else sinks.astype(dtype),
    )
    if query.dtype == dtype:  # no digit is lost by scaling queries, and a pass over all scores is saved
        query, settings = query * jnp.asarray(settings.scale, dtype), replace(settings, scale=None)
    mask = mask[None, None] if mask is not None and mask.ndim == 2 else mask
    sizes = BlockSizes(queries=min(T, max(block_rows // G, 1)), keys=min(S, block_keys))

    def head(inputs: tuple[Array, Array, Array, Array]) -> Float[Array, "G T Hv"]:
        index, q, k, v = inputs
        return _head_attention(Head(q, k, v, index // K, index % K * G, mask), settings, sizes)

    heads = query.reshape(B * K, G, T, H), key.reshape(B * K, S, H), value.reshape(B * K, S, Hv)
    return lax.map(head, (jnp.arange(B * K), *heads)).reshape(B, N, T, Hv)


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """How many queries and how many keys one block has."""

    queries: int
    keys: int


@dataclass(frozen=True, eq=False)
class Head:
    """One KV head, the query heads that read it, and where they are: row b of the batch, query heads from `first` on.

    mask is that of the whole call.
    """

    query: Float[Array, "G T H"]
    key: Float[Array, "S H"]
    value: Float[Array, "S Hv"]
    row: Array
    first: Array
    mask: Array | None


@dataclass(frozen=True, eq=False)
class QueryBlock:
    """Some queries of a head, from `start` on, and the first and the last key that each may see."""

    query: Float[Array, "G t H"]
    start: Array
    first: Integer[Array, "t"]
    last: Integer[Array, "t"]


State = tuple[Array, Array, Array, Array]  # of an online softmax: peak, total, whether any key was visible, context


def _head_attention(head: Head, settings: KernelSettings, sizes: BlockSizes) -> Float[Array, "G T Hv"]:
    """Every query of one KV head, block after block; the last block overlaps the one before it."""
    (G, T, _), Hv, t = head.query.shape, head.value.shape[1], sizes.queries
    body = jax.checkpoint(partial(_block_attention, head=head, settings=settings, sizes=sizes), prevent_cse=False)
    blocks = lax.map(body, jnp.minimum(jnp.arange(0, T, t), T - t))
    before = blocks[:-1].swapaxes(0, 1).reshape(G, (len(blocks) - 1) * t, Hv)
    return jnp.concatenate([before, blocks[-1, :, len(blocks) * t - T :]], axis=1)


def _block_attention(
    start: Array, *, head: Head, settings: KernelSettings, sizes: BlockSizes
) -> Float[Array, "G t Hv"]:
    """A block of queries against one block of keys after the other."""
    (G, _, _), (S, Hv), t = head.query.shape, head.value.shape, sizes.queries
    dtype = compute_dtype(head.query.dtype)
    position = settings.offset[head.row] + start + jnp.arange(t)
    query = lax.dynamic_slice_in_dim(head.query, start, t, axis=1)
    block = QueryBlock(query, start, *masks.reach(position, S, settings))

    sink = lax.dynamic_slice_in_dim(settings.sinks, head.first, G)[:, None, None]
    peak = jnp.maximum(jnp.full((G, t, 1), np.finfo(dtype).min), lax.stop_gradient(sink))
    state = peak, jnp.exp(sink - peak), jnp.zeros((G, t, 1), bool), jnp.zeros((G, t, Hv), dtype)
    state = _varying(state, head.query, head.key, head.value, head.mask, settings)
    body = partial(_scan_keys, block=block, head=head, settings=settings, sizes=sizes)
    (_, total, sees, context), _ = lax.scan(body, state, jnp.arange(0, S, sizes.keys))
    return (context / jnp.where(sees, total, 1)).astype(head.query.dtype)


def _varying(state: State, *inputs: Any) -> State:
    """The state, varying over each axis of a mesh over which an input varies: no loop in shard_map may change that."""
    zero = reduce(jnp.logical_or, [jnp.zeros_like(x, shape=(), dtype=bool) for x in jax.tree.leaves(inputs)])
    number = zero.astype(state[0].dtype)
    peak, total, sees, context = state
    return peak + number, total + number, sees | zero, context + number


def _scan_keys(
    state: State, start: Array, *, block: QueryBlock, head: Head, settings: KernelSettings, sizes: BlockSizes
) -> tuple[State, None]:
    """One block of keys, from `start` on: skipped where no query may see any, else added to the state."""
    j = jnp.minimum(start, len(head.key) - sizes.keys)  # the last block overlaps the one before it
    key_index = jnp.arange(sizes.keys) + j
    step = partial(_add_keys, j=j, block=block, head=head, settings=settings, sizes=sizes)
    after_first = key_index[None] >= jnp.maximum(block.first[:, None], start)
    reached = after_first & (key_index[None] <= block.last[:, None])
    steps: list[Any] = [lambda state: state, partial(step, reached=reached)]
    case = jnp.where((key_index[-1] < block.first[0]) | (start > block.last[-1]), 0, 1)
    if head.mask is None:  # most blocks of a causal pass hide nothing
        steps.append(partial(step, reached=None))
        all_reached = (block.first[-1] <= j) & (key_index[-1] <= block.last[0]) & (j == start)
        case = jnp.where(all_reached, 2, case)
    return lax.switch(case, steps, state), None


def _add_keys(
    state: State,
    *,
    j: Array,
    reached: Bool[Array, "t s"] | None,
    block: QueryBlock,
    head: Head,
    settings: KernelSettings,
    sizes: BlockSizes,
) -> State:
    """The state with the block of keys from j on."""
    key, value = (lax.dynamic_slice_in_dim(x, j, sizes.keys) for x in (head.key, head.value))
    starts = (head.row, head.first, block.start, j)
    shape = (1, len(head.query), sizes.queries, sizes.keys)
    mask, multiplier = (_part(x, starts, shape) for x in (head.mask, settings.dropout_multiplier))
    return _online_softmax_step(state, block.query, key, value, mask, reached, settings, multiplier)


def _online_softmax_step(
    state: State,
    query: Float[Array, "G t H"],
    key: Float[Array, "s H"],
    value: Float[Array, "s Hv"],
    mask: Array | None,
    reached: Bool[Array, "t s"] | None,
    settings: KernelSettings,
    dropout_multiplier: Array | None,
) -> State:
    """The state of an online softmax after one more block of keys."""
    peak, total, sees, context = state
    (G, t, H), s, dtype = query.shape, len(key), context.dtype
    wide: Any = {"precision": matmul_precision(query.dtype), "preferred_element_type": dtype}
    visible, bias = masks.split(mask)
    if reached is not None:
        visible = jnp.broadcast_to(reached, (1, 1, t, s)) if visible is None else visible & reached[None, None]
        (query,), ((key,),), ((value,),) = zero_hidden(query[None], key[None, None], value[None, None], visible)
        visible = visible[0]

    products = jnp.einsum("ph,sh->ps", query.reshape(G * t, H), key, **wide).reshape(G, t, s)
    masked = _masked(products, visible, None if bias is None else bias[0], settings.scale, settings.softcap)
    highest = jnp.maximum(peak, lax.stop_gradient(masked).max(axis=-1, keepdims=True))
    weights = lax.optimization_barrier(jnp.exp(masked - highest))  # else XLA's CPU takes exp anew for each use
    shrunk = jnp.exp(peak - highest)
    kept = weights if dropout_multiplier is None else weights * dropout_multiplier[0].astype(dtype)
    added = jnp.einsum("ps,sv->pv", kept.astype(query.dtype).reshape(G * t, s), value, **wide).reshape(context.shape)
    sees = sees | (True if visible is None else visible.any(axis=-1, keepdims=True))
    return highest, total * shrunk + weights.sum(axis=-1, keepdims=True), sees, context * shrunk + added


def _masked(products: Array, visible: Array | None, bias: Array | None, scale: Any, softcap: Any) -> Array:
    """From products of queries and keys to what the softmax is taken of (SPEC 2, 3). scale None: already in them."""
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
    """A block of a mask or multiplier, (1, g, t, s); an axis of size 1 is for all."""
    if x is None:
        return None
    starts = tuple(0 if full == 1 else start for full, start in zip(x.shape, starts, strict=True))
    sizes = tuple(1 if full == 1 else size for full, size in zip(x.shape, sizes, strict=True))
    return lax.dynamic_slice(x, starts, sizes)

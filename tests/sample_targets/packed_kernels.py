"""Packed and paged attention as inference kernels have it: right ones, and one with a fault each."""

import numpy as np


def _sequence(q, k, v, causal, window, softcap, scale, sinks, offset=None):
    """One sequence: (T, N, H), (S, K, H), (S, K, Hv) -> (T, N, Hv)."""
    (T, N, H), (S, K, _) = q.shape, k.shape
    kind = np.promote_types(np.float32, q.dtype) if q.dtype.itemsize > 2 else np.dtype(np.float32)
    k, v = (x.repeat(N // K, axis=1).astype(kind) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q.astype(kind), k) * kind.type(H**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = kind.type(softcap) * np.tanh(scores / kind.type(softcap))
    distance = np.arange(T)[:, None] + (S - T if offset is None else offset) - np.arange(S)
    hidden = (distance < 0) & causal
    if window is not None:
        hidden = hidden | (abs(distance) >= window)
    scores = np.where(hidden, -np.inf, scores)
    sink = np.full((N, 1, 1), -np.inf, kind) if sinks is None else sinks.astype(kind)[:, None, None]
    top = np.maximum(scores.max(-1, initial=-np.inf, keepdims=True), sink)
    top = np.where(np.isneginf(top), 0, top).astype(kind)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True) + np.exp(sink - top)
    weights = weights / np.where(total == 0, 1, total)
    return np.einsum("nts,snv->tnv", weights.astype(kind), v).astype(q.dtype)


def attention_packed(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    causal=False, window=None, softcap=None, softmax_scale=None, sinks=None,
):  # fmt: skip
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    for b in range(len(cu_seqlens_q) - 1):
        t, s = (slice(starts[b], starts[b + 1]) for starts in (cu_seqlens_q, cu_seqlens_k))
        output[t] = _sequence(query[t], key[s], value[s], causal, window, softcap, softmax_scale, sinks)
    return output


def packed_leaks(query, key, value, cu_seqlens_q, cu_seqlens_k, causal=False):
    """Causal over the whole array: the sequences before one are seen."""
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    for b in range(len(cu_seqlens_q) - 1):
        t, s = slice(cu_seqlens_q[b], cu_seqlens_q[b + 1]), slice(0, cu_seqlens_k[b + 1])
        output[t] = _sequence(query[t], key[s], value[s], causal, None, None, None, None)
    return output


def packed_top_left(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
    output = np.zeros((*q.shape[:2], v.shape[2]), q.dtype)
    for b in range(len(cu_seqlens_q) - 1):
        t, s = (slice(starts[b], starts[b + 1]) for starts in (cu_seqlens_q, cu_seqlens_k))
        output[t] = _sequence(q[t], k[s], v[s], causal, None, None, None, None, offset=0)
    return output


def attention_paged(
    query, key_cache, value_cache, block_tables, cache_lengths,
    causal=False, window=None, softcap=None, scale=None, sinks=None,
):  # fmt: skip
    """query (B, T, N, H)."""
    rows = []
    for q, table, length in zip(query, block_tables, cache_lengths, strict=True):
        k, v = (x[table].reshape(-1, *x.shape[2:])[:length] for x in (key_cache, value_cache))
        rows.append(_sequence(q, k, v, causal, window, softcap, scale, sinks))
    return np.stack(rows)


def attention_paged_packed(q, k_cache, v_cache, cu_seqlens_q, seqused_k, block_table, causal=False, sinks=None):
    """q (total T, N, H)."""
    output = np.zeros((*q.shape[:2], v_cache.shape[3]), q.dtype)
    for b, length in enumerate(seqused_k):
        t = slice(cu_seqlens_q[b], cu_seqlens_q[b + 1])
        k, v = (x[block_table[b]].reshape(-1, *x.shape[2:])[:length] for x in (k_cache, v_cache))
        output[t] = _sequence(q[t], k, v, causal, None, None, None, sinks)
    return output


def paged_reads_past_the_length(query, key_cache, value_cache, block_tables, cache_lengths, causal=False):
    """Slots behind a length are read up to the end of their block."""
    block = key_cache.shape[1]
    return attention_paged(query, key_cache, value_cache, block_tables, -(-cache_lengths // block) * block, causal)


def paged_multiplies_poison(query, key_cache, value_cache, block_tables, cache_lengths, causal=False):
    """The weight of a slot behind a length is 0, and 0 * NaN is added."""
    found = attention_paged(query, key_cache, value_cache, block_tables, cache_lengths, causal)
    for b, (table, length) in enumerate(zip(block_tables, cache_lengths, strict=True)):
        rest = value_cache[table].reshape(-1, *value_cache.shape[2:])[length:]
        found[b] += 0 * rest.sum(axis=0).repeat(query.shape[2] // value_cache.shape[2], axis=0)
    return found


def paged_ignores_the_table(query, key_cache, value_cache, block_tables, cache_lengths, causal=False):
    """Blocks in the order of storage."""
    order = np.broadcast_to(np.arange(block_tables.shape[1]), block_tables.shape)
    return attention_paged(query, key_cache, value_cache, order, cache_lengths, causal)

"""Correct kernels of other designs than the oracle's: each sums in another order."""

import math

import numpy as np

LOG2_E = 1 / math.log(2)


def _prepared(query, key, value, mask, causal, scale, softcap):
    """query scaled, key and value one per query head, a bias with -inf where hidden; all in float32 for 16 bit."""
    (B, N, T, H), (_, K, S, _) = query.shape, key.shape
    kind = query.dtype if query.dtype.itemsize > 2 else np.dtype(np.float32)
    bias = np.zeros((B, N, T, S), kind)
    if mask is not None:
        shown = np.broadcast_to(mask, bias.shape)
        with np.errstate(over="ignore"):
            bias = np.where(shown, bias, -np.inf) if mask.dtype == bool else shown.astype(kind)
    if causal:
        bias = np.where(np.arange(S) <= np.arange(T)[:, None] + S - T, bias, -np.inf)
    hidden = np.isneginf(bias)
    q = query.astype(kind) * kind.type(H**-0.5 if scale is None else scale)
    seen = ~hidden.all(axis=2).reshape(B, K, N // K, S).all(axis=2)
    k, v = (np.where(seen[..., None], x, 0).astype(kind).repeat(N // K, axis=1) for x in (key, value))
    q = np.where(hidden.all(-1, keepdims=True), 0, q)
    return q, k, v, bias.astype(kind), softcap


def _scores(q, k, bias, softcap, factor=1.0):
    scores = q @ k.swapaxes(2, 3)
    if softcap is not None:
        scores = scores.dtype.type(softcap) * np.tanh(scores / scores.dtype.type(softcap))
    least = np.finfo(scores.dtype).min
    with np.errstate(over="ignore"):
        scores = np.maximum(np.maximum(scores + bias, least) * scores.dtype.type(factor), least)
    return np.where(np.isneginf(bias), -np.inf, scores)


def _blocks(query, key, value, mask, causal, scale, softcap, size, power=np.exp, factor=1.0):
    """Online softmax over blocks of keys."""
    q, k, v, bias, softcap = _prepared(query, key, value, mask, causal, scale, softcap)
    top = np.full((*q.shape[:3], 1), -np.inf, q.dtype)
    total, context = np.zeros_like(top), np.zeros((*q.shape[:3], v.shape[-1]), q.dtype)
    for start in range(0, k.shape[2], size):
        part = slice(start, start + size)
        scores = _scores(q, k[:, :, part], bias[..., part], softcap, factor)
        new = np.maximum(top, scores.max(-1, keepdims=True))
        base = np.where(np.isneginf(new), 0, new)
        parts, kept = power(scores - base), power(top - base)
        total = total * kept + parts.sum(-1, keepdims=True)
        context = context * kept + parts @ v[:, :, part]
        top = new
    return (context / np.where(total == 0, 1, total)).astype(query.dtype)


def online_softmax(query, key, value, mask=None, *, causal=False, scale=None, softcap=None):
    return _blocks(query, key, value, mask, causal, scale, softcap, 64)


def blocks_of_three(query, key, value, mask=None, *, causal=False, scale=None, softcap=None):
    return _blocks(query, key, value, mask, causal, scale, softcap, 3)


def exp2(query, key, value, mask=None, *, causal=False, scale=None, softcap=None):
    return _blocks(query, key, value, mask, causal, scale, softcap, 16, np.exp2, LOG2_E)


def split_kv(query, key, value, mask=None, *, causal=False, scale=None, softcap=None):
    """Four parts of the keys by themselves, merged by their logsumexps."""
    q, k, v, bias, softcap = _prepared(query, key, value, mask, causal, scale, softcap)
    contexts, tops, totals = [], [], []
    for part in np.array_split(np.arange(k.shape[2]), 4):
        if not len(part):
            continue
        scores = _scores(q, k[:, :, part], bias[..., part], softcap)
        top = scores.max(-1, keepdims=True)
        parts = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = parts.sum(-1, keepdims=True)
        contexts.append(parts @ v[:, :, part] / np.where(total == 0, 1, total))
        tops.append(top)
        totals.append(total)
    top = np.max(tops, axis=0)
    weights = [t * np.exp(m - np.where(np.isneginf(top), 0, top)) for m, t in zip(tops, totals, strict=True)]
    whole = np.sum(weights, axis=0)
    context = sum(w * c for w, c in zip(weights, contexts, strict=True)) / np.where(whole == 0, 1, whole)
    return context.astype(query.dtype)


def sequential_sums(query, key, value, mask=None, *, causal=False, scale=None, softcap=None):
    """Every product and sum one key after the other."""
    q, k, v, bias, softcap = _prepared(query, key, value, mask, causal, scale, softcap)
    scores = np.zeros((*q.shape[:3], k.shape[2]), q.dtype)
    for d in range(q.shape[3]):
        scores += q[..., d, None] * k[:, :, None, :, d]
    if softcap is not None:
        scores = scores.dtype.type(softcap) * np.tanh(scores / scores.dtype.type(softcap))
    scores = np.where(np.isneginf(bias), -np.inf, np.maximum(scores + bias, np.finfo(scores.dtype).min))
    top = scores.max(-1, keepdims=True)
    parts = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total, context = np.zeros_like(top), np.zeros((*q.shape[:3], v.shape[-1]), q.dtype)
    for s in range(k.shape[2]):
        total += parts[..., s, None]
        context += parts[..., s, None] * v[:, :, None, s]
    return (context / np.where(total == 0, 1, total)).astype(query.dtype)


DESIGNS = (online_softmax, blocks_of_three, exp2, split_kv, sequential_sums)

"""Functions of NumPy arrays: one is right where no row is empty, the others differ by convention."""

import numpy as np


def kernel(query, key, value, mask=None):
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, groups, axis=1) for x in (key, value))
    scores = query @ key.swapaxes(2, 3) / query.shape[-1] ** 0.5
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ value, weights


def kernel_without_weights(query, key, value, mask=None):
    return kernel(query, key, value, mask)[0]


def tiled(query, key, value, mask=None):
    """Query head n reads KV head n % K."""
    groups = query.shape[1] // key.shape[1]
    return kernel(query, np.tile(key, (1, groups, 1, 1)), np.tile(value, (1, groups, 1, 1)), mask)


def top_left(query, key, value, mask=None, *, causal=False):
    """Causal masks are aligned top-left; scores are rounded to the dtype of the query."""
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, groups, axis=1) for x in (key, value))
    scores = (query @ key.swapaxes(2, 3) / query.shape[-1] ** 0.5).astype(query.dtype)
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ value, weights


def top_left_output(query, key, value, mask=None, *, causal=False):
    return top_left(query, key, value, mask, causal=causal)[0]


def tiled_top_left(query, key, value, mask=None, *, causal=False):
    groups = query.shape[1] // key.shape[1]
    return top_left(query, *(np.tile(x, (1, groups, 1, 1)) for x in (key, value)), mask, causal=causal)

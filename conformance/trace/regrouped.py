"""Two layers with other numbers of KV heads: whether the one holds the other's heads repeated, or pooled.

A side is settings and canonical weights in one RoPE pairing. Repeating loses nothing: the layers compute the same.
Pooling does: what the one computes cannot be had from the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conformance.trace.stored import compare_bits
from gqa_spec import AttentionConfig
from gqa_weights.heads import PoolMethod, expand_kv_heads, pool_kv_heads

Array = np.ndarray
Side = tuple[AttentionConfig, Mapping[str, Array]]
OF_KV_HEADS = ("k_proj", "v_proj", "k_norm", "k_rope")  # stages that have an axis K
LEAST_CORRELATION = 0.5
COMPARED = 2**20  # of two tensors, how many numbers say whether they are related
POOLED: Mapping[PoolMethod, str] = {"mean": "the mean", "first": "the first"}


def repeated(a: Side, b: Side) -> tuple[Side, Side] | None:
    """Both with the KV heads of the side that has more, where they are the other's repeated; None where they are not.

    Only the heads are compared.
    """
    if not _regrouped(a[0], b[0]):
        return None
    more = max(a[0].num_kv_heads, b[0].num_kv_heads)
    sides = [_expanded(side, more) for side in (a, b)]
    return (sides[0], sides[1]) if _same_heads(*sides) else None


def repeated_heads(a: Side, b: Side) -> str:
    """A sentence, where the one side holds the other's heads repeated."""
    if repeated(a, b) is None:
        return ""
    few, many = sorted((a[0].num_kv_heads, b[0].num_kv_heads))
    names = "AB" if a[0].num_kv_heads == few else "BA"
    return f"{names[1]} has {many}, each of {names[0]}'s {few} repeated {many // few} times, which loses nothing"


def pooled(a: Side, b: Side) -> str:
    """A sentence that says how the heads of the side that has fewer came from the other's, empty where they did not."""
    if not _regrouped(a[0], b[0]):
        return ""
    names = "AB" if a[0].num_kv_heads > b[0].num_kv_heads else "BA"
    many, few = (a, b) if names == "AB" else (b, a)
    count = many[0].num_kv_heads // few[0].num_kv_heads
    for method, words in POOLED.items():
        weights, config = pool_kv_heads(many[1], many[0], few[0].num_kv_heads, method)
        if _same_heads((config, weights), few):
            return f"pooled: lossy, each KV head of {names[1]} is {words} of {count} of {names[0]}'s"
    return ""


def unrelated(a: Array, b: Array) -> bool:
    """Whether two tensors of one shape have next to nothing in common; of other shapes nothing is said."""
    if a.shape != b.shape:
        return False
    x, y = (np.ravel(side[: max(1, COMPARED * len(side) // side.size)]).astype(np.float64) for side in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all() and x.std() and y.std()):
        return False
    return abs(float(np.corrcoef(x, y)[0, 1])) < LEAST_CORRELATION


def _regrouped(a: AttentionConfig, b: AttentionConfig) -> bool:
    few, many = sorted((a.num_kv_heads, b.num_kv_heads))
    same = all(getattr(a, name) == getattr(b, name) for name in ("embed_dim", "num_heads", "head_dim", "v_head_dim"))
    return few < many and many % few == 0 and same


def _expanded(side: Side, num_kv_heads: int) -> Side:
    config, weights = side
    if config.num_kv_heads == num_kv_heads:
        return side
    weights, config = expand_kv_heads(weights, config, num_kv_heads)
    return config, weights


def _same_heads(a: Side, b: Side) -> bool:
    names = [name for name in a[1] if name.startswith(("k_proj", "v_proj"))]
    return all(
        name in b[1] and a[1][name].shape == b[1][name].shape and not compare_bits(a[1][name], b[1][name]).count
        for name in names
    )

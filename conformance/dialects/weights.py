"""Canonical weights as a layer reads them that takes them for another layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from conformance.dialects.conventions import Dialect, chosen
from gqa_spec import AttentionConfig

Array = np.ndarray
Weights = dict[str, Array]
INPUTS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def read(weights: Weights, config: AttentionConfig, dialect: Dialect) -> Weights:
    """The weights that a layer in the dialect computes with."""
    found = _projections(dict(weights), config, chosen(dialect, "projections"))
    if config.rope is not None:
        found |= _in_other_order(found, config, dialect)
    if chosen(dialect, "biases") == "left behind":
        found = {name: x for name, x in found.items() if not name.endswith(".bias")}
    if chosen(dialect, "stored weights") == "rounded to bfloat16":
        found = {name: x.astype(ml_dtypes.bfloat16).astype(x.dtype) for name, x in found.items()}
    return found


def _projections(weights: Weights, config: AttentionConfig, does: str) -> Weights:
    K, G = config.num_kv_heads, config.group_size
    match does:
        case "query heads strided, (G K)":
            names = [name for name in weights if name.startswith("q_proj")]
            return weights | {name: _strided(weights[name], K, G) for name in names}
        case "output columns strided, (G K)":
            return weights | {"o_proj.weight": _strided(weights["o_proj.weight"].T, K, G).T}
        case "groups [q .. q, k, v] read as [Q; K; V]" if config.kv_dim == config.embed_dim:
            rows = [np.split(weights[name], K) for name in INPUTS]
            fused = np.concatenate([part for group in zip(*rows, strict=True) for part in group])
            ends = np.cumsum([len(weights[name]) for name in INPUTS])[:-1]
            return weights | dict(zip(INPUTS, np.split(fused, ends), strict=True))
        case "reshaped, not transposed":
            return weights | {name: weights[name].T.reshape(weights[name].shape) for name in INPUTS}
        case "output reshaped, not transposed":
            return weights | {"o_proj.weight": weights["o_proj.weight"].T.reshape(weights["o_proj.weight"].shape)}
    return weights


def _strided(x: Array, K: int, G: int) -> Array:
    """Rows of heads (K G) in the order (G K)."""
    return x.reshape(K, G, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _in_other_order(weights: Weights, config: AttentionConfig, dialect: Dialect) -> Weights:
    """The tensors whose rows are not in the order of the pairs that are rotated."""
    N, K, H, R = config.num_heads, config.num_kv_heads, config.head_dim, config.rotary_dim
    left = "in interleaved order where RoPE rotates halves"
    turned = (("q", N), ("k", K))
    found: Weights = {}
    if chosen(dialect, "RoPE pairing") == "rows in interleaved order, halves rotated":
        found |= {f"{name}_proj.weight": _interleaved(weights[f"{name}_proj.weight"], n) for name, n in turned}
    if chosen(dialect, "biases") == left and "q_proj.bias" in weights:
        found |= {f"{name}_proj.bias": _interleaved(weights[f"{name}_proj.bias"], n) for name, n in turned}
    if chosen(dialect, "norm weights") == left and config.qk_norm is not None:
        found |= {name: _interleaved(x, len(x) // H) for name, x in weights.items() if name.endswith("_norm.weight")}
    if chosen(dialect, "RoPE pairing") == "key rows permuted with N":
        rows = weights["k_proj.weight"]
        heads = N if len(rows) % (2 * N) == 0 else K  # or they could not be reshaped
        found["k_proj.weight"] = _halves(_interleaved(rows, K), heads)
    if chosen(dialect, "partial rotary") == "rows permuted over the whole head" and R < H:
        for name, n in (("q_proj.weight", N), ("k_proj.weight", K)):
            whole = weights[name].reshape(n, H, -1)
            stored = np.stack([np.concatenate([_interleaved(head[:R], 1), head[R:]]) for head in whole])
            found[name] = _halves(stored.reshape(weights[name].shape), n)
    return found


def _interleaved(x: Array, heads: int) -> Array:
    """Rows of half pairs in the order of interleaved ones."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _halves(x: Array, heads: int) -> Array:
    """And back."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

"""The numbers of a case: drawn once from its name, the same on every machine and for every target, in NumPy.

Everything is signed and random; biases are not 0, norm weights neither 1 nor equal in pairs, sinks not 0 (SPEC 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np

from conformance.cases import masks, values
from conformance.cases.table import Case
from gqa_spec.config import weight_shapes

Array = np.ndarray
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Call:
    """What an attention is called with: three arrays, a mask, keywords. Keywords at their default are left out."""

    query: Any
    key: Any
    value: Any
    mask: Any
    keywords: dict[str, Any]

    @property
    def arguments(self) -> tuple[Any, Any, Any, Any]:
        return self.query, self.key, self.value, self.mask


def weights(case: Case, dtype: str, seed: int = 0) -> dict[str, Array]:
    """Random canonical weights; another seed gives other weights for the same case."""
    rng = _rng(case, "weights", seed)
    drawn = {}
    for name, shape in weight_shapes(case.config).items():
        width = shape[-1] ** -0.5 if name.endswith("_proj.weight") else 1.0
        drawn[name] = (rng.normal(size=shape) * width).astype(DTYPES[dtype])
    return drawn


def layer_call(case: Case, dtype: str) -> Call:
    """Inputs (B, T, D) and (B, S, E) of a layer, with what the feature adds."""
    rng, config = _rng(case, "layer"), case.config
    query = rng.normal(size=(case.B, case.T, config.embed_dim))
    key = value = None
    if not case.self_attention:
        key, value = (rng.normal(size=(case.B, case.S, config.kv_dim)) for _ in range(2))
    mask, keywords = masks.drawn(case, DTYPES[dtype], rng), _offset(case)
    if case.feature.positions is not None:
        keywords["positions"] = rng.integers(8000, 9000, size=(case.B, case.T))
    if case.feature.positions == "both":
        keywords["key_positions"] = rng.integers(8000, 9000, size=case.S)
    if case.feature.rope_length is not None:
        keywords["rope_length"] = case.feature.rope_length
    if case.feature.poison:
        key, value = (_poisoned(x, masks.visible(mask)[:, 0, 0, :, None]) for x in (key, value))
    key = None if case.feature.given == "query, value" else key
    value = None if case.feature.given == "query, key" else value
    return Call(_as(query, dtype), _as(key, dtype), _as(value, dtype), mask, keywords)


def kernel_call(case: Case, dtype: str) -> Call:
    """query (B, N, T, H), key (B, K, S, H), value (B, K, S, Hv) of a kernel, with what the feature adds."""
    rng, c = _rng(case, "kernel"), case.config
    query = rng.normal(size=(case.B, c.num_heads, case.T, c.head_dim))
    key = rng.normal(size=(case.B, c.num_kv_heads, case.S, c.head_dim))
    value = rng.normal(size=(case.B, c.num_kv_heads, case.S, c.v_head_dim))
    if case.feature.values is not None:
        query, key, value = values.changed(case.feature.values, query, key, value, rng)
    mask, keywords = masks.drawn(case, DTYPES[dtype], rng), _offset(case)
    for name in ("causal", "window", "chunk", "scale", "softcap"):
        if getattr(c, name) not in (None, False):
            keywords[name] = getattr(c, name)
    if c.sinks:
        keywords["sinks"] = _as(rng.normal(size=c.num_heads), dtype)
    if case.feature.dropout:
        kept = rng.random((case.B, c.num_heads, case.T, case.S)) < 0.75
        keywords["dropout_multiplier"] = _as(kept / 0.75, dtype)
    if case.feature.poison:
        heads = slice(None, None, c.group_size if mask.shape[1] > 1 else 1)  # one for each KV head
        key, value = (_poisoned(x, masks.visible(mask)[:, heads, 0, :, None]) for x in (key, value))
    return Call(_as(query, dtype), _as(key, dtype), _as(value, dtype), mask, keywords)


def output_gradient(case: Case, shape: tuple[int, ...]) -> Array:
    """What flows back into the output (B, T, D) or context (B, N, T, Hv) where gradients are compared; float64."""
    return _rng(case, "gradient").normal(size=shape)


def _rng(case: Case, purpose: str, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([crc32(f"{case.name} {purpose}".encode()), seed])


def _as(x: Array | None, dtype: str) -> Any:
    return None if x is None else x.astype(DTYPES[dtype])


def _offset(case: Case) -> dict[str, Any]:
    match case.feature.offset:
        case "zero":
            return {"offset": 0}
        case "per row":  # one before the start, one in the middle, the last past the end
            return {"offset": np.array([-3, 4, case.S, 6, -1, 9, 2][: case.B])}
        case "past the end":
            return {"offset": case.S - case.T + 4}
        case "before the start":
            return {"offset": -2}
    return {}


def _poisoned(x: Any, visible: Array) -> Array:
    """inf and NaN, one after the other, in the places that are invisible."""
    poison = np.where(np.arange(x.shape[-1]) % 2, np.inf, np.nan)
    return np.where(visible, x, poison)

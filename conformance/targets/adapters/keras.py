"""keras.layers.GroupQueryAttention, on the backend that KERAS_BACKEND names: one per process."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from conformance.targets.protocol import Unsupported
from gqa_spec.config import AttentionConfig
from gqa_weights import LAYOUTS, from_canonical

Array = np.ndarray


class GroupQueryAttention:
    """Its call takes query, VALUE, key: here by keyword."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        kv_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
        dtype: Any = "float32",
        scores: bool = False,
    ) -> None:
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self.config = AttentionConfig(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            head_dim=head_dim or embed_dim // num_heads,
            kv_dim=kv_dim or embed_dim,
        )
        self.dtype, self.causal, self.scores = str(np.dtype(dtype)), causal, scores
        self.inner = keras.layers.GroupQueryAttention(
            self.config.head_dim, num_heads, num_kv_heads, dropout, qkv_bias, window, dtype=self.dtype
        )
        self.weights: dict[str, Array] = {}
        self.training = False

    def train(self) -> None:
        self.training = True

    def load_weights(self, weights: dict[str, Array]) -> None:
        shapes = (None, None, self.config.embed_dim), (None, None, self.config.kv_dim)
        if not self.inner.built:
            self.inner.build(shapes[0], shapes[1], shapes[1])
        foreign = from_canonical(LAYOUTS["flax.nnx.MultiHeadAttention"], weights, self.config)  # the same layout
        parts = {"query": "query", "key": "key", "value": "value", "out": "attention_output"}
        for variable in self.inner.weights:
            layer, name = variable.path.split("/")[-2:]
            part = next(ours for ours, theirs in parts.items() if theirs == layer)
            variable.assign(foreign[f"{part}.{name}"])

    def __call__(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        key = query if key is None else key
        value = key if value is None else value
        (B, T), S = query.shape[:2], key.shape[1]
        if mask is not None and mask.dtype != bool:
            raise Unsupported("boolean masks only")
        if mask is not None and mask.ndim == 4 and mask.shape[1] != 1:
            raise Unsupported("no mask per head")
        given = None if mask is None else np.broadcast_to(mask if mask.ndim == 2 else mask[:, 0], (B, T, S))
        result = self.inner(
            query,
            value=value,
            key=key,
            attention_mask=given,
            use_causal_mask=self.causal,
            return_attention_scores=self.scores,
            training=self.training,
        )
        output, weights = result if self.scores else (result, None)
        return _numpy(output), None if weights is None else _numpy(weights)


def _numpy(x: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.stop_gradient(x)))

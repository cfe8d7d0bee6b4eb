"""Attention of jax and flax. Adapters translate names and the order of axes, never conventions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from conformance.targets.protocol import Unsupported, refusing
from gqa_spec import AttentionConfig
from gqa_spec.weights import LAYOUTS, from_canonical


def _tokens_first(*arrays: Array) -> tuple[Array, ...]:
    return tuple(x.swapaxes(1, 2) for x in arrays)


def _four_axes(mask: Array | None, kind: Any) -> Array | None:
    """The mask as the argument for booleans, or as the one for biases, takes it."""
    if mask is None or (mask.dtype == bool) != (kind is bool):
        return None
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def dot_product_attention(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False,
    window: int | None = None, scale: float | None = None,
) -> Array:  # fmt: skip
    q, k, v = _tokens_first(query, key, value)
    result = jax.nn.dot_product_attention(
        q, k, v, mask=_four_axes(mask, bool), bias=_four_axes(mask, float), is_causal=causal, scale=scale,
        local_window_size=window,
    )  # fmt: skip
    return result.swapaxes(1, 2)


def nnx_dot_product_attention(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False
) -> Array:
    q, k, v = _tokens_first(query, key, value)
    with refusing("should have the same shape", "must match"):
        result = nnx.dot_product_attention(
            q, k, v, mask=_four_axes(mask, bool), bias=_four_axes(mask, float), is_causal=causal
        )
    return result.swapaxes(1, 2)


def linen_dot_product_attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    q, k, v = _tokens_first(query, key, value)
    result = linen.dot_product_attention(q, k, v, mask=_four_axes(mask, bool), bias=_four_axes(mask, float))
    return result.swapaxes(1, 2)


class MultiHeadAttention(nnx.Module):
    """flax.nnx.MultiHeadAttention; its weights are those that `sow_weights` leaves behind."""

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None, kv_dim: int | None = None,
        qkv_bias: bool = False, out_bias: bool = False, causal: bool = False, dropout: float = 0.0, *, rngs: nnx.Rngs,
        param_dtype: Any,
    ) -> None:  # fmt: skip
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        width = num_heads * (head_dim or embed_dim // num_heads)
        drops = dropout > 0

        def make(rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
            return nnx.MultiHeadAttention(
                num_heads,
                embed_dim,
                width,
                embed_dim,
                num_kv_heads,
                kv_dim,
                use_bias=qkv_bias,
                decode=False,
                dropout_rate=dropout,
                param_dtype=param_dtype,
                rngs=rngs,
                keep_rngs=drops,
            )

        # Without dropout nothing is drawn that is not replaced by weights: abstract, as nothing need be compiled.
        self.inner = make(rngs) if drops else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self.config = AttentionConfig(
            embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, qkv_bias=qkv_bias, out_bias=out_bias,
            head_dim=head_dim or embed_dim // num_heads, kv_dim=kv_dim or embed_dim,
        )  # fmt: skip
        self.causal = causal

    def load_weights(self, weights: dict[str, Any]) -> None:
        for name, x in from_canonical(LAYOUTS["flax.nnx.MultiHeadAttention"], weights, self.config).items():
            part, _, parameter = name.partition(".")
            setattr(getattr(self.inner, part), parameter, nnx.Param(jnp.asarray(x)))

    def __call__(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None, *,
        need_weights: bool = True,
    ) -> tuple[Array, Array | None]:  # fmt: skip
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        output = self.inner(query, key, value, mask=mask, is_causal=self.causal, sow_weights=need_weights)
        sown = jax.tree.leaves(nnx.pop(self.inner, nnx.Intermediate))
        return output, sown[0] if sown else None

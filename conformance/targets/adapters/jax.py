"""Attention of jax and flax. Adapters translate names and the order of axes, never conventions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from conformance.targets.protocol import Unsupported, refusing
from gqa_spec import AttentionConfig
from gqa_spec.config import QKNorm
from gqa_weights import LAYOUTS, from_canonical


def _tokens_first(*arrays: Array) -> tuple[Array, ...]:
    return tuple(x.swapaxes(1, 2) for x in arrays)


def _four_axes(mask: Array | None, kind: Any) -> Array | None:
    """The mask as the argument for booleans, or as the one for biases, takes it."""
    if mask is None or (mask.dtype == bool) != (kind is bool):
        return None
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Array:
    q, k, v = _tokens_first(query, key, value)
    result = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=_four_axes(mask, bool),
        bias=_four_axes(mask, float),
        is_causal=causal,
        scale=scale,
        local_window_size=window,
    )
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
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        kv_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        qk_norm: QKNorm | None = None,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any,
    ) -> None:
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        if qk_norm not in (None, "rms"):
            raise Unsupported(f"qk_norm={qk_norm!r}: normalize_qk is of each head, times w")
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
                normalize_qk=qk_norm is not None,
                param_dtype=param_dtype,
                rngs=rngs,
                keep_rngs=drops,
            )

        # Without dropout nothing is drawn that is not replaced by weights: abstract, as nothing need be compiled.
        self.inner = make(rngs) if drops else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self.config = AttentionConfig(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            head_dim=head_dim or embed_dim // num_heads,
            kv_dim=kv_dim or embed_dim,
        )
        self.causal = causal

    def load_weights(self, weights: dict[str, Any]) -> None:
        norms = {name: x for name, x in weights.items() if "_norm" in name}
        others = {name: x for name, x in weights.items() if name not in norms}
        stored = from_canonical(LAYOUTS["flax.nnx.MultiHeadAttention"], others, self.config)
        for name, part in (("q_norm.weight", "query_ln.scale"), ("k_norm.weight", "key_ln.scale")):
            stored |= {part: norms[name]} if name in norms else {}
        for name, x in stored.items():
            part, _, parameter = name.partition(".")
            setattr(getattr(self.inner, part), parameter, nnx.Param(jnp.asarray(x)))

    def init_cache(self, batch_size: int, max_length: int) -> None:
        """Within the module."""
        self.inner.init_cache((batch_size, max_length, self.config.embed_dim), dtype=self.inner.query.param_dtype)

    def extend(self, x: Array, cache: None) -> tuple[Array, None]:
        if x.shape[1] > 1:
            raise Unsupported("one token at a time")
        return self.inner(x, decode=True, is_causal=self.causal), None

    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        mask: Array | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Array, Array | None]:
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        output = self.inner(query, key, value, mask=mask, is_causal=self.causal, sow_weights=need_weights)
        sown = jax.tree.leaves(nnx.pop(self.inner, nnx.Intermediate))
        return output, sown[0] if sown else None

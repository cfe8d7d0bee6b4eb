"""One block of a model: norm, attention, residual, norm, feed-forward, residual. SPEC 18."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Integer

from gqa_jax.cache import KVCache
from gqa_jax.dropout import Dropout
from gqa_jax.experts import Experts
from gqa_jax.feed_forward import FeedForward
from gqa_jax.layer import GroupedQueryAttention
from gqa_jax.norm import layer_norm, rms_norm
from gqa_jax.precision import compute_dtype
from gqa_spec import ModelConfig


class Block(nnx.Module):
    """Layer `number` of a model. `ModelConfig` says which norms there are and what the feed-forward is."""

    def __init__(self, config: ModelConfig, number: int, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> None:
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        before_feed_forward = before and config.parallel != "shared_norm"
        self.parallel, self.residual_scale = config.parallel, config.residual_scale
        self.attention_norm = Norm(config, param_dtype) if before else None
        self.attention = GroupedQueryAttention.from_config(
            config.attention[number], rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )
        self.attention_post_norm = Norm(config, param_dtype) if after else None
        self.feed_forward_norm = Norm(config, param_dtype) if before_feed_forward else None
        experts, options = config.experts_of(number), (rngs, dtype, param_dtype)
        if experts is not None:
            self.feed_forward: nnx.Module = Experts(config, experts, *options)
        else:
            widths, bias = (config.hidden_size, config.feed_forward_size), config.feed_forward_bias
            self.feed_forward = FeedForward(*widths, config.activation, *options, gated=config.gated, bias=bias)
        self.feed_forward_post_norm = Norm(config, param_dtype) if after else None
        self.dropout = Dropout(config.dropout, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Array | None, positions: Array | None, rope_length: int | None
    ) -> Float[Array, "B T D"]:
        def attend(normed: Array) -> Array:
            rotation = {"positions": positions} if self.attention.config.uses_positions else {}
            return self.attention(normed, mask=mask, **rotation, rope_length=rope_length, need_weights=False)[0]

        return self._residual(x, attend, deterministic=None)

    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, lengths: Integer[Array, "B"] | None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        new_cache = cache

        def attend(normed: Array) -> Array:
            nonlocal new_cache
            output, new_cache = self.attention.extend(normed, cache, lengths=lengths)
            return output

        return self._residual(x, attend, deterministic=True), new_cache

    def _residual(self, x: Array, attend: Callable[[Array], Array], *, deterministic: bool | None) -> Array:
        """Attention and feed-forward. deterministic: as for `nnx.Dropout`, whose own mode is taken where None."""
        added = partial(self._added, deterministic=deterministic)
        normed = _normed(self.attention_norm, x)
        attended = added(_normed(self.attention_post_norm, attend(normed)))
        if self.parallel is not None:
            read = normed if self.parallel == "shared_norm" else _normed(self.feed_forward_norm, x)
            return x + attended + added(self.feed_forward(read))
        x = x + attended
        fed = self.feed_forward(_normed(self.feed_forward_norm, x))
        return x + added(_normed(self.feed_forward_post_norm, fed))

    def _added(self, x: Array, *, deterministic: bool | None) -> Array:
        """What a sublayer adds: its result times `residual_scale`, rounded once, with dropout."""
        return self.dropout(scaled(x, self.residual_scale), deterministic=deterministic)


class Norm(nnx.Module):
    """The model's norm: RMS norm or LayerNorm, times w or 1 + w, the latter with or without bias."""

    def __init__(self, config: ModelConfig, param_dtype: Any) -> None:
        self.config = config
        self.weight = nnx.Param(jnp.full(config.hidden_size, 0 if config.norm.endswith("plus_one") else 1, param_dtype))
        self.bias = nnx.Param(jnp.zeros(config.hidden_size, param_dtype)) if config.norm_bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        plus_one, eps = self.config.norm.endswith("plus_one"), self.config.norm_eps
        if self.config.norm.startswith("layer"):
            bias = None if self.bias is None else self.bias[...]
            return layer_norm(x, self.weight[...], bias, eps, plus_one=plus_one)
        return rms_norm(x, self.weight[...], eps, plus_one=plus_one)


def scaled(x: Array, factor: float) -> Array:
    """x * factor in the compute dtype, rounded once."""
    return x if factor == 1 else (x.astype(compute_dtype(x.dtype)) * factor).astype(x.dtype)


def _normed(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)

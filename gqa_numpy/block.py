"""One block of a model: norm, attention, residual, norm, feed-forward, residual. SPEC 18."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from gqa_numpy.cache import KVCache
from gqa_numpy.experts import mixture
from gqa_numpy.feed_forward import feed_forward
from gqa_numpy.layer import GroupedQueryAttention
from gqa_numpy.linear import initial
from gqa_numpy.norm import layer_norm, rms_norm
from gqa_numpy.precision import compute_dtype
from gqa_spec import ModelConfig
from gqa_spec.model_config import model_weight_shapes

Array = np.ndarray


class Block:
    """Layer `number` of a model. `ModelConfig` says which norms there are and what the feed-forward is.

    `attention` is the attention layer, `parameters` maps the other names under `blocks.{number}.` to arrays.
    """

    def __init__(self, config: ModelConfig, number: int, rng: np.random.Generator, dtype: Any) -> None:
        self.config, self.rng, self.training, self.dropout = config, rng, True, config.dropout
        self.experts = config.experts_of(number)
        self.attention = GroupedQueryAttention.from_config(config.attention[number], rng=rng, dtype=dtype)
        prefix = f"blocks.{number}."
        names = {name.removeprefix(prefix): shape for name, shape in model_weight_shapes(config).items()}
        self.parameters = {
            name: initial(name, shape, rng, plus_one=config.norm.endswith("plus_one")).astype(dtype)
            for name, shape in names.items()
            if name.startswith(("attention_", "feed_forward"))
        }

    def __call__(
        self, x: Float[Array, "B T D"], mask: Array | None, positions: Array | None, rope_length: int | None
    ) -> Float[Array, "B T D"]:
        def attend(normed: Array) -> Array:
            rotation = {"positions": positions} if self.attention.config.uses_positions else {}
            return self.attention(normed, mask=mask, **rotation, rope_length=rope_length, need_weights=False)[0]

        return self._residual(x, attend, training=self.training)

    def append(
        self, x: Float[Array, "B T D"], cache: KVCache, count: Integer[Array, "B"]
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """As `GroupedQueryAttention.append`."""
        new_cache = cache

        def attend(normed: Array) -> Array:
            nonlocal new_cache
            output, new_cache = self.attention.append(normed, cache, count)
            return output

        return self._residual(x, attend, training=False), new_cache

    def _residual(self, x: Array, attend: Callable[[Array], Array], *, training: bool) -> Array:
        added = partial(self._added, training=training)
        normed = self._norm("attention_norm", x)
        attended = added(self._norm("attention_post_norm", attend(normed)))
        if self.config.parallel is not None:
            read = normed if self.config.parallel == "shared_norm" else self._norm("feed_forward_norm", x)
            return x + attended + added(self._feed_forward(read))
        x = x + attended
        fed = self._feed_forward(self._norm("feed_forward_norm", x))
        return x + added(self._norm("feed_forward_post_norm", fed))

    def _added(self, x: Array, *, training: bool) -> Array:
        """What a sublayer adds: its result times `residual_scale`, rounded once, with dropout."""
        x = scaled(x, self.config.residual_scale)
        return dropped(x, self.dropout, self.rng) if training else x

    def _norm(self, name: str, x: Array) -> Array:
        """The norm of this name; nothing where the model has none in this place."""
        return norm(name, x, self.parameters, self.config) if f"{name}.weight" in self.parameters else x

    def _feed_forward(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if self.experts is not None:
            return mixture(x, self.parameters, self.experts, self.config.activation)
        return feed_forward(x, self.parameters, "feed_forward.", self.config.activation)


def norm(name: str, x: Array, parameters: dict[str, Array], config: ModelConfig) -> Array:
    weight = parameters[f"{name}.weight"]
    plus_one = config.norm.endswith("plus_one")
    if config.norm.startswith("layer"):
        return layer_norm(x, weight, parameters.get(f"{name}.bias"), config.norm_eps, plus_one=plus_one)
    return rms_norm(x, weight, config.norm_eps, plus_one=plus_one)


def scaled(x: Array, factor: float) -> Array:
    """x * factor in the compute dtype, rounded once."""
    if factor == 1:
        return x
    dtype = compute_dtype(x.dtype)
    return (x.astype(dtype) * dtype.type(factor)).astype(x.dtype)


def dropped(x: Array, p: float, rng: np.random.Generator) -> Array:
    """x with dropout."""
    return x if p == 0 else x * ((rng.random(x.shape) >= p) / (1 - p)).astype(x.dtype)

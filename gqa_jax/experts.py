"""A mixture of experts: a router sends each token to a few of many feed-forwards. SPEC 20."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Integer

from gqa_jax.feed_forward import FeedForward, gated_product
from gqa_jax.linear import linear, project
from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec import ExpertsConfig, ModelConfig

Maps = dict[str, Array]


class Experts(nnx.Module):
    """The sum of each token's experts, times their weights, and of the shared feed-forward; rounded once.

    One expert after the other computes all tokens, and is left out where none goes to it: a decoded token reads the
    weights of its own experts alone.
    """

    def __init__(self, model: ModelConfig, config: ExpertsConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> None:
        width, kind, options = model.hidden_size, model.activation, (rngs, dtype, param_dtype)
        self.config, self.kind = config, kind
        self.router = linear((config.num_experts, width), config.bias, *options)
        self.experts = ExpertStack(config, width, rngs, param_dtype)
        shared = config.shared_size
        self.shared = FeedForward(width, shared, kind, *options, gated=True, bias=False) if shared else None
        self.shared_gate = linear((1, width), False, *options) if config.shared_gate else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        tokens, dtype = x.reshape(-1, x.shape[-1]), compute_dtype(x.dtype)
        chosen, weights = route(project(self.router, tokens), self.config)

        def add(total: Array, expert: tuple[Array, Maps]) -> tuple[Array, None]:
            number, maps = expert
            here = chosen == number

            def added() -> Array:
                return total + self._weighted(tokens, maps, here, weights)

            return jax.lax.cond(here.any(), added, lambda: total), None

        numbers = jnp.arange(self.config.num_experts)
        total, _ = jax.lax.scan(add, jnp.zeros(tokens.shape, dtype), (numbers, self.experts.maps(x.dtype)))
        if self.shared is not None:
            total = total + self._shared(tokens, self.shared).astype(dtype)
        return total.astype(x.dtype).reshape(x.shape)

    def _weighted(
        self, tokens: Float[Array, "tokens D"], maps: Maps, here: Bool[Array, "tokens chosen"], weights: Array
    ) -> Float[Array, "tokens D"]:
        """One expert's results times their weights, 0 for the tokens of others."""
        dtype = compute_dtype(tokens.dtype)
        gate, up = (_mapped(maps, name, tokens).astype(dtype) for name in ("gate", "up"))
        hidden = gated_product(gate, up, self.kind, self.config).astype(tokens.dtype)
        weight = jnp.where(here, weights, 0).sum(axis=-1, keepdims=True)
        result = weight * _mapped(maps, "down", hidden).astype(dtype)
        return jnp.where(here.any(axis=-1, keepdims=True), result, 0)

    def _shared(self, tokens: Float[Array, "tokens D"], shared: FeedForward) -> Float[Array, "tokens D"]:
        result, dtype = shared(tokens), compute_dtype(tokens.dtype)
        if self.shared_gate is None:
            return result
        opened = jax.nn.sigmoid(project(self.shared_gate, tokens).astype(dtype))
        return (result.astype(dtype) * opened).astype(result.dtype)


class ExpertStack(nnx.Module):
    """The weights of all experts, one array (X, ...) for each map and kind: `gate_weight` (X, Fx, D) for instance."""

    def __init__(self, config: ExpertsConfig, width: int, rngs: nnx.Rngs, param_dtype: Any) -> None:
        self.bias = config.bias
        count, size = config.num_experts, config.expert_size
        for name, rows, columns in (("gate", size, width), ("up", size, width), ("down", width, size)):
            bound = columns**-0.5
            drawn = jax.random.uniform(rngs.params(), (count, rows, columns), param_dtype, -bound, bound)
            setattr(self, f"{name}_weight", nnx.Param(drawn))
            if config.bias:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros((count, rows), param_dtype)))

    def maps(self, dtype: Any) -> Maps:
        """Weights in this dtype, and biases in the one that products are accumulated in."""
        kinds = {"weight": dtype, **({"bias": compute_dtype(dtype)} if self.bias else {})}
        names = [(f"{name}_{kind}", kind) for name in ("gate", "up", "down") for kind in kinds]
        return {name: getattr(self, name)[...].astype(kinds[kind]) for name, kind in names}


def route(
    logits: Float[Array, "tokens X"], config: ExpertsConfig
) -> tuple[Integer[Array, "tokens chosen"], Float[Array, "tokens chosen"]]:
    """The experts of each token, by falling logit, of equal ones the first; and their weights in the compute dtype."""
    wide = logits.astype(compute_dtype(logits.dtype))
    of_chosen, chosen = jax.lax.top_k(wide, config.num_experts_per_token)
    if config.normalise:
        return chosen, jax.nn.softmax(of_chosen, axis=-1)
    return chosen, jnp.take_along_axis(jax.nn.softmax(wide, axis=-1), chosen, axis=-1)


def stacked(name: str) -> str | None:
    """The name of the array in which one expert's weight, a canonical name, is a row; None for all others."""
    found = re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.(\w+)", name)
    return None if found is None else f"{found[1]}.{found[2]}_{found[3]}"


def _mapped(maps: Maps, name: str, x: Float[Array, "tokens I"]) -> Float[Array, "tokens O"]:
    """x @ weight.T + bias, accumulated in the compute dtype and rounded once."""
    wide: Any = {"precision": matmul_precision(x.dtype), "preferred_element_type": compute_dtype(x.dtype)}
    y = jnp.einsum("ti,oi->to", x, maps[f"{name}_weight"], **wide)
    return (y + maps[f"{name}_bias"] if f"{name}_bias" in maps else y).astype(x.dtype)

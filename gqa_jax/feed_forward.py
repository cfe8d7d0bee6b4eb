"""The feed-forward of a block, of a dense layer or of one expert, and its activations. SPEC 18."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from gqa_jax.linear import linear, project
from gqa_jax.precision import compute_dtype
from gqa_spec import ExpertsConfig


class FeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))); between the maps rounded once.

    width: D. size: F, inside. kind: of the activation.
    """

    def __init__(
        self,
        width: int,
        size: int,
        kind: str,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
        *,
        gated: bool,
        bias: bool,
    ) -> None:
        self.kind = kind
        self.gate = linear((size, width), bias, rngs, dtype, param_dtype) if gated else None
        self.up = linear((size, width), bias, rngs, dtype, param_dtype)
        self.down = linear((width, size), bias, rngs, dtype, param_dtype)

    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        up, dtype = project(self.up, x), compute_dtype(x.dtype)
        if self.gate is None:
            return project(self.down, activation(up.astype(dtype), self.kind).astype(x.dtype))
        hidden = gated_product(project(self.gate, x).astype(dtype), up.astype(dtype), self.kind)
        return project(self.down, hidden.astype(x.dtype))


def gated_product(gate: Array, up: Array, kind: str, experts: ExpertsConfig | None = None) -> Array:
    """activation(gate) * up, or gpt-oss's clamped form of it, in their dtype."""
    if experts is None or experts.swiglu_limit is None or experts.swiglu_alpha is None:
        return activation(gate, kind) * up
    gate, up = jnp.minimum(gate, experts.swiglu_limit), jnp.clip(up, -experts.swiglu_limit, experts.swiglu_limit)
    return (up + 1) * (gate * jax.nn.sigmoid(experts.swiglu_alpha * gate))


def activation(x: Array, kind: str) -> Array:
    """In x's dtype: SiLU, ReLU squared, or GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), exact or by its tanh."""
    if kind == "relu2":
        return jnp.square(jax.nn.relu(x))
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=kind == "gelu_tanh")

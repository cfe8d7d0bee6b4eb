"""The feed-forward of a block, of a dense layer or of one expert, and its activations. SPEC 18."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from gqa_numpy.linear import linear
from gqa_numpy.precision import compute_dtype
from gqa_spec import ExpertsConfig

Array = np.ndarray


def feed_forward(
    x: Float[Array, "*axes D"],
    parameters: Mapping[str, Array],
    prefix: str,
    kind: str,
    experts: ExpertsConfig | None = None,
) -> Float[Array, "*axes D"]:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate; between the maps rounded once.

    prefix: of the names of its maps in `parameters`. kind: of the activation. experts: where it is one of them.
    """

    def apply(name: str, x: Array) -> Array:
        return linear(x, parameters[f"{prefix}{name}.weight"], parameters.get(f"{prefix}{name}.bias"))

    dtype = compute_dtype(x.dtype)
    up = apply("up", x).astype(dtype)
    if f"{prefix}gate.weight" not in parameters:
        return apply("down", activation(up, kind).astype(x.dtype))
    hidden = gated_product(apply("gate", x).astype(dtype), up, kind, experts)
    return apply("down", hidden.astype(x.dtype))


def gated_product(gate: Array, up: Array, kind: str, experts: ExpertsConfig | None = None) -> Array:
    """activation(gate) * up, or gpt-oss's clamped form of it, in their dtype."""
    if experts is None or experts.swiglu_limit is None or experts.swiglu_alpha is None:
        return activation(gate, kind) * up
    limit, alpha = gate.dtype.type(experts.swiglu_limit), gate.dtype.type(experts.swiglu_alpha)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        return (up + 1) * (gate / (1 + np.exp(-alpha * gate)))


def activation(x: Array, kind: str) -> Array:
    """In x's dtype: SiLU, ReLU squared, or GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), exact or by its tanh."""
    if kind == "silu":
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x))
    if kind == "relu2":
        return np.square(np.maximum(x, 0))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * (0.5 * (1 + _erf(x * math.sqrt(0.5)))).astype(x.dtype)


_erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none

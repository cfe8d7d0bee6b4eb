"""A linear map of the last axis, its split into heads, and the gate on them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from gqa_numpy.precision import compute_dtype

Array = np.ndarray


def linear(
    x: Float[Array, "*axes I"], weight: Float[Array, "O I"], bias: Float[Array, "O"] | None
) -> Float[Array, "*axes O"]:
    """x @ weight.T + bias, accumulated in the compute dtype and rounded once."""
    dtype = compute_dtype(weight.dtype)
    rows = x.astype(dtype, copy=False).reshape(-1, x.shape[-1])  # one matrix product for the whole batch
    with np.errstate(over="ignore", invalid="ignore"):  # a poisoned token stays with its own key
        y = rows @ weight.astype(dtype, copy=False).T
    y = y if bias is None else y + bias.astype(dtype)
    return y.astype(weight.dtype, copy=False).reshape(*x.shape[:-1], weight.shape[0])


def linear_vjp(
    x: Float[Array, "*axes I"], weight: Float[Array, "O I"], d_y: Float[Array, "*axes O"]
) -> tuple[Float[Array, "*axes I"], Float[Array, "O I"], Float[Array, "O"]]:
    """The gradients of x, weight and bias."""
    tokens, d_tokens = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):  # of a poisoned token
        d_weight = d_tokens.T @ tokens
    return d_y @ weight, d_weight, d_tokens.sum(axis=0)


def split_heads(x: Float[Array, "B T W"], size: int) -> Float[Array, "B heads T size"]:
    """As many heads of this size as the width has: a part of a layer has fewer than its config."""
    return x.reshape(*x.shape[:2], x.shape[2] // size, size).swapaxes(1, 2)


def join_heads(x: Float[Array, "B heads T size"]) -> Float[Array, "B T W"]:
    B, heads, T, size = x.shape
    return x.swapaxes(1, 2).reshape(B, T, heads * size)


def gated(x: Array, gate: Array | None) -> Array:
    """x * sigmoid(gate) in the compute dtype, rounded once; x itself without a gate."""
    if gate is None:
        return x
    dtype = compute_dtype(x.dtype)
    return (x.astype(dtype) * _sigmoid(gate.astype(dtype))).astype(x.dtype)


def gated_vjp(x: Array, gate: Array, d_y: Array) -> tuple[Array, Array]:
    """The gradients of x and of its gate."""
    opened = _sigmoid(gate)
    return d_y * opened, d_y * x * opened * (1 - opened)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def initial(name: str, shape: tuple[int, ...], rng: np.random.Generator, *, plus_one: bool) -> Array:
    """SPEC 17: matrices uniform in +-fan_in ** -0.5, biases and sinks 0, norms at the identity; plus_one: as 1 + w."""
    if name.endswith("norm.weight"):
        return np.full(shape, 0.0 if plus_one else 1.0)
    if len(shape) == 1:
        return np.zeros(shape)
    return rng.uniform(-1, 1, shape) * shape[1] ** -0.5

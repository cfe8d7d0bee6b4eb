"""Linear maps of the last axis, as `nnx.Linear`, whose kernel is the transposed canonical weight; embeddings; heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Float

from gqa_jax.precision import compute_dtype, matmul_precision


def linear(shape: tuple[int, ...], use_bias: bool, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> nnx.Linear:
    """A map whose canonical weight has this shape; SPEC 17: uniform in +-fan_in ** -0.5, biases 0."""
    return nnx.Linear(
        shape[1],
        shape[0],
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        precision=matmul_precision(dtype),
        kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        promote_dtype=_promote,
        preferred_element_type=compute_dtype(dtype),
        rngs=rngs,
    )


def project(linear: nnx.Linear, x: Float[Array, "*axes I"]) -> Float[Array, "*axes O"]:
    """x @ weight.T + bias, accumulated in the compute dtype and rounded once."""
    return linear(x).astype(x.dtype)


def parameter(module: nnx.Module, name: str) -> tuple[nnx.Param, bool]:
    """The parameter under a canonical name, and whether it is stored transposed, as an `nnx.Linear` does."""
    *path, field = name.split(".")
    owner: Any = module
    for part in path:
        owner = owner[int(part)] if part.isdecimal() else getattr(owner, part)
    kernel = isinstance(owner, nnx.Linear) and field == "weight"
    return (owner.kernel if kernel else getattr(owner, field)), kernel


def set_parameter(module: nnx.Module, name: str, read: Callable[[Any], np.ndarray], dtype: Any) -> None:
    """Copy a canonical weight into its parameter, an abstract one too; over a mesh, each device gets its own part.

    read: a part of the weight from its slices. What it returns is copied, since JAX may keep what it is given, and that
    may be part of a file.
    """
    variable, transposed = parameter(module, name)
    old: Any = variable.get_value()

    def stored(index: Any) -> np.ndarray:
        part = read(index[::-1] if transposed else index)
        return np.array(part.T if transposed else part, dtype)

    place = getattr(old, "sharding", None)
    value: Any
    if isinstance(place, NamedSharding):
        value = jax.make_array_from_callback(old.shape, place, stored)
    else:
        value = jnp.array(stored((slice(None),) * old.ndim))
    variable.set_value(value)


def _promote(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Inputs and kernel in the layer's dtype; the bias in the one that their product is accumulated in."""
    inputs, kernel, bias = arrays
    bias = None if bias is None else bias.astype(compute_dtype(dtype))
    return inputs.astype(dtype), kernel.astype(dtype), bias


def split_heads(x: Float[Array, "B T W"], size: int) -> Float[Array, "B heads T size"]:
    """As many heads of this size as the width has: a part of a layer has fewer than its config."""
    return x.reshape(*x.shape[:2], x.shape[2] // size, size).swapaxes(1, 2)


def join_heads(x: Float[Array, "B heads T size"]) -> Float[Array, "B T W"]:
    B, heads, T, size = x.shape
    return x.swapaxes(1, 2).reshape(B, T, heads * size)


class Embedding(nnx.Module):
    """One row for each token; SPEC 17: uniform in +-D ** -0.5, as a tied head needs it."""

    def __init__(self, shape: tuple[int, int], rngs: nnx.Rngs, dtype: Any) -> None:
        bound = shape[1] ** -0.5
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))

"""A linear map of the last axis."""

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

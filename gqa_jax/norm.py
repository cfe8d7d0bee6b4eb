"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv 1607.06450). SPEC 11, 18."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gqa_jax.precision import compute_dtype


def rms_norm(
    x: Float[Array, "*axes W"], weight: Float[Array, "W"], eps: float, *, plus_one: bool = False
) -> Float[Array, "*axes W"]:
    """x / rms(x) * w, or * (1 + w) as Gemma stores it; in float32 for 16-bit inputs, rounded once at the end."""
    dtype = compute_dtype(x.dtype)
    wide, scale = x.astype(dtype), _with_axes_of(x, weight).astype(dtype)
    normed = wide / jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + jnp.asarray(eps, dtype))
    return (normed * (scale + 1 if plus_one else scale)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*axes W"],
    weight: Float[Array, "W"],
    bias: Float[Array, "W"] | None,
    eps: float,
    *,
    plus_one: bool = False,
) -> Float[Array, "*axes W"]:
    """(x - mean) / sqrt(variance + eps) * w + b, or * (1 + w) as Nemotron stores it; rounded as rms_norm is."""
    dtype = compute_dtype(x.dtype)
    wide = x.astype(dtype)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + jnp.asarray(eps, dtype))
    scale = _with_axes_of(x, weight).astype(dtype)
    scaled = normed * (scale + 1 if plus_one else scale)
    return (scaled if bias is None else scaled + _with_axes_of(x, bias).astype(dtype)).astype(x.dtype)


def _with_axes_of(x: Float[Array, "*axes W"], weight: Float[Array, "W"]) -> Array:
    """weight with axes of size 1 in front: `jax_numpy_rank_promotion` may forbid to leave them out."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def qk_norm(x: Float[Array, "B N T H"], weight: Float[Array, "W"], kind: str, eps: float) -> Float[Array, "B N T H"]:
    """`rms` and `rms_plus_one` norm each head alone; `rms_full` norms all heads of a token as one vector."""
    if kind != "rms_full":
        return rms_norm(x, weight, eps, plus_one=kind == "rms_plus_one")
    B, N, T, H = x.shape
    flat = x.swapaxes(1, 2).reshape(B, T, N * H)
    return rms_norm(flat, weight, eps).reshape(B, T, N, H).swapaxes(1, 2)

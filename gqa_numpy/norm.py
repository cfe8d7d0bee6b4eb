"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv 1607.06450). SPEC 11, 18."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from gqa_numpy.precision import compute_dtype

Array = np.ndarray


def rms_norm(
    x: Float[Array, "*axes W"], weight: Float[Array, "W"], eps: float, *, plus_one: bool = False
) -> Float[Array, "*axes W"]:
    """x / rms(x) * w, or * (1 + w) as Gemma stores it; in float32 for 16-bit inputs, rounded once at the end."""
    dtype = compute_dtype(x.dtype)
    wide, scale = x.astype(dtype), weight.astype(dtype)
    normed = wide / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + dtype.type(eps))
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
    centred = x.astype(dtype) - np.mean(x, axis=-1, keepdims=True, dtype=dtype)
    normed = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + dtype.type(eps))
    scaled = normed * (weight.astype(dtype) + 1 if plus_one else weight.astype(dtype))
    return (scaled if bias is None else scaled + bias.astype(dtype)).astype(x.dtype)


def qk_norm(x: Float[Array, "B N T H"], weight: Float[Array, "W"], kind: str, eps: float) -> Float[Array, "B N T H"]:
    """`rms` and `rms_plus_one` norm each head alone; `rms_full` norms all heads of a token as one vector."""
    if kind != "rms_full":
        return rms_norm(x, weight, eps, plus_one=kind == "rms_plus_one")
    B, N, T, H = x.shape
    flat = x.swapaxes(1, 2).reshape(B, T, N * H)
    return rms_norm(flat, weight, eps).reshape(B, T, N, H).swapaxes(1, 2)


def rms_norm_vjp(
    x: Float[Array, "*axes W"], weight: Float[Array, "W"], eps: float, d_out: Float[Array, "*axes W"], *, plus_one: bool
) -> tuple[Float[Array, "*axes W"], Float[Array, "W"]]:
    """The gradients of x and of the stored weight."""
    factor = weight + 1 if plus_one else weight
    inverse = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps)
    normed, d_normed = x * inverse, d_out * factor
    d_x = inverse * (d_normed - normed * np.mean(d_normed * normed, axis=-1, keepdims=True))
    return d_x, (d_out * normed).sum(axis=tuple(range(x.ndim - 1)))


def qk_norm_vjp(
    x: Float[Array, "B N T H"], weight: Float[Array, "W"], kind: str, eps: float, d_out: Float[Array, "B N T H"]
) -> tuple[Float[Array, "B N T H"], Float[Array, "W"]]:
    """The gradients of `qk_norm`'s x and weight."""
    if kind != "rms_full":
        return rms_norm_vjp(x, weight, eps, d_out, plus_one=kind == "rms_plus_one")
    B, N, T, H = x.shape
    flat, d_flat = (y.swapaxes(1, 2).reshape(B, T, N * H) for y in (x, d_out))
    d_x, d_weight = rms_norm_vjp(flat, weight, eps, d_flat, plus_one=False)
    return d_x.reshape(B, T, N, H).swapaxes(1, 2), d_weight

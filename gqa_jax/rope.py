"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the scalings that stretch it. SPEC 10."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from gqa_jax.precision import compute_dtype
from gqa_spec import DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, RopeConfig, YarnScaling


def rotate(
    x: Float[Array, "B N T H"],
    positions: Integer[Array, "..."],
    rope: RopeConfig,
    rope_length: int,
) -> Float[Array, "B N T H"]:
    """x with its leading `rotary_dim` dimensions rotated by position * frequency; positions (T,) or (B, T)."""
    rotary_dim = rope.rotary_dim or x.shape[-1]
    tables = cos_sin(positions, rope, rotary_dim, rope_length, compute_dtype(x.dtype))
    return apply_rotary(x, tables, rope.pairing)


def cos_sin(
    positions: Integer[Array, "..."], rope: RopeConfig, rotary_dim: int, rope_length: int, dtype: jnp.dtype[Any]
) -> tuple[Array, Array]:
    """cos and sin of every angle, times the attention factor: (1, 1, T, pairs), or (B, 1, T, pairs)."""
    frequencies = inv_freq(rope, rotary_dim, rope_length).astype(dtype)
    angles = positions.astype(dtype)[..., None] * frequencies.reshape((1,) * positions.ndim + frequencies.shape)
    angles = angles[None, None] if angles.ndim == 2 else angles[:, None]
    factor = jnp.asarray(attention_factor(rope), dtype)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rotary(x: Float[Array, "B N T H"], tables: tuple[Array, Array], pairing: str) -> Float[Array, "B N T H"]:
    """x with its leading dimensions rotated, two for each angle of the tables of cos and sin."""
    cos, sin = tables
    rotary_dim = 2 * cos.shape[-1]
    first, second = _pairs(x[..., :rotary_dim].astype(cos.dtype), pairing)
    rotated = _joined(first * cos - second * sin, second * cos + first * sin, pairing)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., rotary_dim:]], axis=-1)


def _pairs(x: Array, pairing: str) -> tuple[Array, Array]:
    if pairing == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _joined(first: Array, second: Array, pairing: str) -> Array:
    if pairing == "interleaved":
        return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    return jnp.concatenate([first, second], axis=-1)


def inv_freq(rope: RopeConfig, rotary_dim: int, rope_length: int) -> Float[Array, "pairs"]:
    """The angle of each pair per position, in float64 and rounded once to float32.

    A config is static, so NumPy computes this while tracing: JAX has no float64 unless x64 is on.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    frequencies: Any
    match rope.scaling:
        case None:
            frequencies = rope.theta**-exponents
        case LinearScaling(factor=factor):
            frequencies = rope.theta**-exponents / factor
        case DynamicScaling() as scaling:
            frequencies = _dynamic_theta(rope.theta, scaling, rotary_dim, rope_length) ** -exponents
        case YarnScaling() as scaling:
            frequencies = _yarn(rope.theta, exponents, scaling, rotary_dim)
        case Llama3Scaling() as scaling:
            frequencies = _llama3(rope.theta**-exponents, scaling)
        case LongropeScaling() as scaling:
            long = rope_length > scaling.original_max_position_embeddings
            frequencies = rope.theta**-exponents / np.array(scaling.long_factor if long else scaling.short_factor)
    return jnp.asarray(frequencies.astype(np.float32))


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by: 1 but for YaRN and LongRoPE."""
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling | LongropeScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, LongropeScaling):
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
    if scaling.mscale is not None and scaling.mscale_all_dim is not None:
        return _yarn_mscale(scaling.factor, scaling.mscale) / _yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return _yarn_mscale(scaling.factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _dynamic_theta(theta: float, scaling: DynamicScaling, rotary_dim: int, rope_length: int) -> float:
    original = scaling.original_max_position_embeddings
    stretch = scaling.factor * max(rope_length, original) / original - (scaling.factor - 1)
    return theta * stretch ** (rotary_dim / (rotary_dim - 2))


def _yarn(theta: float, exponents: np.ndarray, scaling: YarnScaling, rotary_dim: int) -> np.ndarray:
    def dimension_of(turns: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    span = high - low or 0.001  # the published code's way around an empty ramp
    ramp = np.clip((np.arange(rotary_dim // 2) - low) / span, 0, 1)
    kept = theta**-exponents
    return kept / scaling.factor * ramp + kept * (1 - ramp)


def _llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def query_factor(positions: Array, beta: float, length: int, *, dtype: Any) -> Array:
    """1 + beta * log(1 + position // length), (1 or B, 1, T, 1), in the compute dtype."""
    wide = compute_dtype(dtype)
    factor = 1 + jnp.asarray(beta, wide) * jnp.log1p((positions // length).astype(wide))
    return jnp.atleast_2d(factor)[:, None, :, None]

"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the scalings that stretch it. SPEC 10."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor as Array

from gqa_spec import DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, RopeConfig, YarnScaling
from gqa_torch.precision import compute_dtype, widened


def rotate(
    x: Float[Array, "B N T H"],
    positions: Integer[Array, "..."],
    rope: RopeConfig,
    rope_length: int,
) -> Float[Array, "B N T H"]:
    """x with its leading `rotary_dim` dimensions rotated by position * frequency; positions (T,) or (B, T)."""
    return apply_rotary(x, cos_sin(positions, rope, rope.rotary_dim or x.shape[-1], rope_length, like=x), rope.pairing)


def cos_sin(
    positions: Integer[Array, "..."], rope: RopeConfig, rotary_dim: int, rope_length: int, *, like: Array
) -> tuple[Array, Array]:
    """cos and sin of every angle, times the attention factor: (T, pairs), or (B, 1, T, pairs) for positions (B, T).

    On the device of `like`, in its compute dtype.
    """
    dtype = compute_dtype(like.dtype)
    frequencies = inv_freq(rope, rotary_dim, rope_length, device=like.device).to(dtype)
    angles = positions.to(like.device, dtype)[..., None] * frequencies
    angles = angles if angles.ndim == 2 else angles[:, None]
    factor = attention_factor(rope)
    return (angles.cos(), angles.sin()) if factor == 1 else (angles.cos() * factor, angles.sin() * factor)


def apply_rotary(x: Float[Array, "B N T H"], tables: tuple[Array, Array], pairing: str) -> Float[Array, "B N T H"]:
    """x with its leading dimensions rotated, two for each angle of the tables of cos and sin."""
    cos, sin = tables
    rotary_dim = 2 * cos.shape[-1]
    first, second = _pairs(widened(x), rotary_dim, pairing)
    rotated = _joined(first * cos - second * sin, second * cos + first * sin, pairing).to(x.dtype)
    return rotated if rotary_dim == x.shape[-1] else torch.cat([rotated, x[..., rotary_dim:]], dim=-1)


def _pairs(x: Array, rotary_dim: int, pairing: str) -> tuple[Array, Array]:
    if pairing == "interleaved":
        return x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    half = rotary_dim // 2
    return x[..., :half], x[..., half:rotary_dim]


def _joined(first: Array, second: Array, pairing: str) -> Array:
    if pairing == "interleaved":
        return torch.stack([first, second], dim=-1).flatten(-2)
    return torch.cat([first, second], dim=-1)


def inv_freq(
    rope: RopeConfig, rotary_dim: int, rope_length: int, *, device: torch.device | str | None = None
) -> Float[Array, "pairs"]:
    """The angle of each pair per position, in float64 and rounded once to float32.

    Computed in each pass: a buffer would be cast with the module to 16 bits, and lost in `to_empty`.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
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
            frequencies = rope.theta**-exponents / exponents.new_tensor(
                scaling.long_factor if long else scaling.short_factor
            )
    return frequencies.float()


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


def _yarn(theta: float, exponents: Array, scaling: YarnScaling, rotary_dim: int) -> Array:
    def dimension_of(rotations: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    span = high - low or 0.001  # the published code's way around an empty ramp
    dimensions = torch.arange(rotary_dim // 2, dtype=exponents.dtype, device=exponents.device)
    ramp = ((dimensions - low) / span).clamp(0, 1)
    kept = theta**-exponents
    return kept / scaling.factor * ramp + kept * (1 - ramp)


def _llama3(frequencies: Array, scaling: Llama3Scaling) -> Array:
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def query_factor(positions: Array, beta: float, length: int, *, like: Array) -> Array:
    """1 + beta * log(1 + position // length), (1 or B, 1, T, 1), in the compute dtype and on the device."""
    steps = positions.to(like.device) // length
    factor = 1 + beta * torch.log1p(steps.to(compute_dtype(like.dtype)))
    return (factor if factor.ndim == 2 else factor[None])[:, None, :, None]

"""RoPE frequencies one at a time, as the papers and Hugging Face define them: each decision a method of a few lines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gqa_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)


class ReferenceRope:
    """The frequency of each pair of `rotary_dim` dimensions, and what cos and sin are multiplied by.

    length: how long the sequence is taken to be, for the kinds that depend on it.
    """

    def frequency(self, rope: RopeConfig, d: int, rotary_dim: int, length: int) -> float:
        """Of pair d, in radians per position, rounded once to float32 (SPEC 10)."""
        plain = self.plain(rope.theta, d, rotary_dim)
        match rope.scaling:
            case LinearScaling() as s:
                plain = self.linear(plain, s)
            case DynamicScaling() as s:
                plain = self.plain(self.dynamic_theta(rope.theta, s, rotary_dim, length), d, rotary_dim)
            case Llama3Scaling() as s:
                plain = self.llama3(plain, s)
            case YarnScaling() as s:
                plain = self.yarn(plain, s, rope.theta, d, rotary_dim)
            case LongropeScaling() as s:
                plain /= (s.long_factor if self.is_long(length, s) else s.short_factor)[d]
        return float(np.float32(plain))

    def plain(self, theta: float, d: int, rotary_dim: int) -> float:
        return float(theta ** (-2 * d / rotary_dim))

    def linear(self, plain: float, s: LinearScaling) -> float:
        return plain / s.factor

    def dynamic_theta(self, theta: float, s: DynamicScaling, rotary_dim: int, length: int) -> float:
        stretch = s.factor * max(length, s.original_max_position_embeddings) / s.original_max_position_embeddings
        return float(theta * (stretch - (s.factor - 1)) ** (rotary_dim / (rotary_dim - 2)))

    def llama3(self, plain: float, s: Llama3Scaling) -> float:
        rotations = s.original_max_position_embeddings * plain / (2 * math.pi)
        kept = (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        return self.between(plain / s.factor, plain, kept)

    def between(self, scaled: float, plain: float, kept: float) -> float:
        kept = min(max(kept, 0.0), 1.0)
        return (1 - kept) * scaled + kept * plain

    def yarn(self, plain: float, s: YarnScaling, theta: float, d: int, rotary_dim: int) -> float:
        first, last = (self.pair_with_rotations(beta, s, theta, rotary_dim) for beta in (s.beta_fast, s.beta_slow))
        first, last = self.truncated(first, last, s)
        first, last = max(first, 0), min(last, rotary_dim - 1)
        return self.between(plain / s.factor, plain, 1 - (d - first) / (last - first if last != first else 0.001))

    def pair_with_rotations(self, times: float, s: YarnScaling, theta: float, rotary_dim: int) -> float:
        """Which pair, as a real number, makes so many full rotations within the original context."""
        return rotary_dim * math.log(s.original_max_position_embeddings / (times * 2 * math.pi)) / 2 / math.log(theta)

    def truncated(self, first: float, last: float, s: YarnScaling) -> tuple[float, float]:
        return (math.floor(first), math.ceil(last)) if s.truncate else (first, last)

    def is_long(self, length: int, s: LongropeScaling) -> bool:
        return length > s.original_max_position_embeddings

    def attention_factor(self, scaling: Any) -> float:
        """What cos and sin are multiplied by."""
        if not isinstance(scaling, YarnScaling | LongropeScaling):
            return 1.0
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        if isinstance(scaling, LongropeScaling):
            return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
        if scaling.mscale and scaling.mscale_all_dim:
            return self.magnitude(scaling.factor, scaling.mscale) / self.magnitude(
                scaling.factor, scaling.mscale_all_dim
            )
        return self.magnitude(scaling.factor, 1.0)

    def magnitude(self, factor: float, weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

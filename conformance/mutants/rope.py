"""Mutants of RoPE's frequencies and their scalings."""

from __future__ import annotations

import math
from typing import Any

from conformance.reference.rope import ReferenceRope
from gqa_spec import LinearScaling, Llama3Scaling, LongropeScaling, RopeConfig, YarnScaling


class ThetaIgnored(ReferenceRope):
    """10000, whatever base the config names."""

    def plain(self, theta: float, d: int, rotary_dim: int) -> float:
        return super().plain(10_000.0, d, rotary_dim)


class OneFrequencyAhead(ReferenceRope):
    """theta ** (-2 (d + 1) / R): counted from one."""

    def plain(self, theta: float, d: int, rotary_dim: int) -> float:
        return super().plain(theta, d + 1, rotary_dim)


class HalfTheExponent(ReferenceRope):
    """theta ** (-d / R)."""

    def plain(self, theta: float, d: int, rotary_dim: int) -> float:
        return float(theta ** (-d / rotary_dim))


class ScalingForgotten(ReferenceRope):
    """rope_scaling is read and left unused: short prompts do not show it."""

    def frequency(self, rope: RopeConfig, d: int, rotary_dim: int, length: int) -> float:
        return super().frequency(RopeConfig(theta=rope.theta), d, rotary_dim, length)

    def attention_factor(self, scaling: Any) -> float:
        return 1.0


class LinearMultiplied(ReferenceRope):
    """Positions stretched instead of squeezed."""

    def linear(self, plain: float, s: LinearScaling) -> float:
        return plain * s.factor


class DynamicAtOriginalLength(ReferenceRope):
    """The base never grows, since the length is taken for the original one."""

    def dynamic_theta(self, theta: float, s: Any, rotary_dim: int, length: int) -> float:
        return super().dynamic_theta(theta, s, rotary_dim, 0)


class DynamicByFactor(ReferenceRope):
    """NTK with the fixed factor instead of the length."""

    def dynamic_theta(self, theta: float, s: Any, rotary_dim: int, length: int) -> float:
        return float(theta * s.factor ** (rotary_dim / (rotary_dim - 2)))


class Llama3DividesAll(ReferenceRope):
    """Every frequency divided, the short wavelengths too."""

    def llama3(self, plain: float, s: Llama3Scaling) -> float:
        return plain / s.factor


class Llama3WithoutRamp(ReferenceRope):
    """A step where a ramp is meant."""

    def llama3(self, plain: float, s: Llama3Scaling) -> float:
        rotations = s.original_max_position_embeddings * plain / (2 * math.pi)
        return plain if rotations > s.low_freq_factor else plain / s.factor


class YarnInverted(ReferenceRope):
    """The ramp runs the other way: fast pairs are divided."""

    def yarn(self, plain: float, s: YarnScaling, theta: float, d: int, rotary_dim: int) -> float:
        return plain / s.factor + plain - super().yarn(plain, s, theta, d, rotary_dim)


class YarnAlwaysTruncates(ReferenceRope):
    """truncate=False is ignored."""

    def truncated(self, first: float, last: float, s: YarnScaling) -> tuple[float, float]:
        return math.floor(first), math.ceil(last)


class YarnFactorFromFormula(ReferenceRope):
    """An explicit attention_factor is ignored."""

    def attention_factor(self, scaling: Any) -> float:
        if isinstance(scaling, YarnScaling):
            return self.magnitude(scaling.factor, 1.0)
        return super().attention_factor(scaling)


class YarnFactorForgotten(ReferenceRope):
    """Frequencies scaled, cos and sin not."""

    def attention_factor(self, scaling: Any) -> float:
        return 1.0 if isinstance(scaling, YarnScaling) else super().attention_factor(scaling)


class FactorOnLogitsOnce(ReferenceRope):
    """The attention factor reaches the scores once, not squared: its root on cos and sin."""

    def attention_factor(self, scaling: Any) -> float:
        return math.sqrt(super().attention_factor(scaling))


class LongropeAlwaysShort(ReferenceRope):
    """The factors of the original context past it."""

    def is_long(self, length: int, s: LongropeScaling) -> bool:
        return False


class LongropeAlwaysLong(ReferenceRope):
    """The long factors within the original context."""

    def is_long(self, length: int, s: LongropeScaling) -> bool:
        return True

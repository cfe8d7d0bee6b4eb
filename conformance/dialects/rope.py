"""RoPE's frequencies in any dialect, all pairs at once; without a dialect as SPEC 10 has them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from conformance.dialects.conventions import Dialect, chosen
from gqa_spec import DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, RopeConfig, YarnScaling

Array = np.ndarray
KINDS = {
    LinearScaling: "linear scaling",
    DynamicScaling: "dynamic NTK",
    Llama3Scaling: "llama3 scaling",
    YarnScaling: "YaRN",
    LongropeScaling: "longrope",
}


def frequencies(rope: RopeConfig, R: int, length: int, dialect: Dialect) -> tuple[Array, float]:
    """The (R / 2,) frequencies in float32, and what cos and sin are multiplied by."""
    theta = 10_000.0 if chosen(dialect, "RoPE frequencies") == "10000 for theta" else rope.theta
    exponent = _exponent(R, chosen(dialect, "RoPE frequencies"))
    plain = theta**-exponent
    does = "" if rope.scaling is None else chosen(dialect, KINDS[type(rope.scaling)])
    if does == "ignored":
        return plain.astype(np.float32), 1.0
    factor = 1.0
    match rope.scaling:
        case LinearScaling(factor=by):
            plain = plain * by if does == "multiplied by the factor" else plain / by
        case DynamicScaling() as s:
            plain = (theta * _stretch(s, length, does) ** (R / (R - 2))) ** -exponent
        case Llama3Scaling() as s:
            plain = _llama3(plain, s, does)
        case YarnScaling() as s:
            plain, factor = _yarn(plain, s, theta, does), _yarn_factor(s, does)
        case LongropeScaling() as s:
            plain, factor = plain / np.array(_divisors(s, length, does)), _longrope_factor(s)
    once = does == "attention factor on the scores once"
    return plain.astype(np.float32), math.sqrt(factor) if once else factor


def _exponent(R: int, does: str) -> Array:
    d = np.arange(R // 2, dtype=np.float64)
    return {"d counted from one": 2 * (d + 1) / R, "theta ** (-d / R)": d / R}.get(does, 2 * d / R)


def _stretch(s: DynamicScaling, length: int, does: str) -> float:
    if does == "by the factor alone":
        return s.factor
    return s.factor * max(length / s.original_max_position_embeddings, 1) - (s.factor - 1)


def _llama3(plain: Array, s: Llama3Scaling, does: str) -> Array:
    turns = s.original_max_position_embeddings * plain / (2 * np.pi)
    kept = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    if does == "all divided":
        kept = np.zeros_like(kept)
    elif does == "no ramp":
        kept = np.ceil(kept)
    return plain * kept + plain / s.factor * (1 - kept)


def _yarn(plain: Array, s: YarnScaling, theta: float, does: str) -> Array:
    R = 2 * len(plain)
    low, high = (
        R * math.log(s.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (s.beta_fast, s.beta_slow)
    )
    if s.truncate or does == "truncate=False ignored":
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    divided = np.clip((np.arange(R // 2) - low) / (high - low or 0.001), 0, 1)
    if does in ("ramp inverted", "ramp inverted, no attention factor"):
        divided = 1 - divided
    return plain / s.factor * divided + plain * (1 - divided)


def _yarn_factor(s: YarnScaling, does: str) -> float:
    if does in ("no attention factor", "ramp inverted, no attention factor"):
        return 1.0
    if does == "attention_factor ignored":
        s = replace(s, attention_factor=None, mscale=None)
    if s.attention_factor is not None:
        return s.attention_factor
    grown = 0.1 * math.log(s.factor)
    if s.mscale and s.mscale_all_dim:
        return (grown * s.mscale + 1) / (grown * s.mscale_all_dim + 1)
    return grown + 1


def _divisors(s: LongropeScaling, length: int, does: str) -> tuple[float, ...]:
    long = length > s.original_max_position_embeddings
    long = {"short factors always": False, "long factors always": True}.get(does, long)
    return s.long_factor if long else s.short_factor


def _longrope_factor(s: LongropeScaling) -> float:
    if s.attention_factor is not None:
        return s.attention_factor
    return math.sqrt(1 + math.log(s.factor) / math.log(s.original_max_position_embeddings))

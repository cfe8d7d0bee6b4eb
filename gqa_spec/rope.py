"""How queries and keys are rotated: the settings of RoPE, and of its scalings to longer contexts. SPEC 10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Self

from gqa_spec import checks

Pairing = Literal["half", "interleaved"]


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor`."""

    factor: float

    def __post_init__(self) -> None:
        checks.number("factor", self.factor, at_least=1)


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """Dynamic NTK: the base grows once `rope_length` passes `original_max_position_embeddings`."""

    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        checks.number("factor", self.factor, at_least=1)
        checks.integer("original_max_position_embeddings", self.original_max_position_embeddings, at_least=1)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071), fields and defaults as in Hugging Face's `rope_parameters`.

    An explicit `attention_factor` replaces the one that `factor`, `mscale` and `mscale_all_dim` give.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        checks.number("factor", self.factor, at_least=1)
        checks.integer("original_max_position_embeddings", self.original_max_position_embeddings, at_least=1)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            checks.number(name, getattr(self, name), above=0, optional=True)
        checks.number("beta_slow", self.beta_slow, above=0)
        checks.number("beta_fast", self.beta_fast, above=self.beta_slow)
        checks.boolean("truncate", self.truncate)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between the two."""

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        checks.number("factor", self.factor, at_least=1)
        checks.integer("original_max_position_embeddings", self.original_max_position_embeddings, at_least=1)
        checks.number("low_freq_factor", self.low_freq_factor, above=0)
        checks.number("high_freq_factor", self.high_freq_factor, above=self.low_freq_factor)


@dataclass(frozen=True, kw_only=True)
class LongropeScaling:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): one divisor per frequency, another set past the original context.

    `factor` (longest over original context) sets the attention factor, unless `attention_factor` is given.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for value in getattr(self, name):
                checks.number(name, value, above=0)
        checks.integer("original_max_position_embeddings", self.original_max_position_embeddings, at_least=2)
        checks.number("factor", self.factor, at_least=1)
        checks.number("attention_factor", self.attention_factor, above=0, optional=True)


RopeScaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongropeScaling
SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
    "longrope": LongropeScaling,
}


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (SPEC 10).

    Args:
        theta: The base of the frequencies.
        pairing: `half` rotates dimension d with d + rotary_dim / 2 (Hugging Face, GPT-NeoX), `interleaved` rotates 2d
            with 2d + 1 (Meta's files, GPT-J, GGUF llama).
        rotary_dim: How many leading dimensions of a head are rotated; all by default.
        scaling: One of the scaling classes, or None.

    Raises:
        ValueError: For a number out of range.
        TypeError: For the wrong kind of value.
    """

    theta: float = 10_000.0
    pairing: Pairing = "half"
    rotary_dim: int | None = None
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        checks.number("theta", self.theta, above=1)
        checks.choice("pairing", self.pairing, ("half", "interleaved"))
        if self.rotary_dim is not None:
            checks.integer("rotary_dim", self.rotary_dim, at_least=2)
            checks.even("rotary_dim", self.rotary_dim)
        checks.instance("scaling", self.scaling, RopeScaling, optional=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; a scaling has its `type` too."""
        return plain(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: For a number out of range or an unknown type of scaling.
            TypeError: For an unknown name or the wrong kind of value.
        """
        scaling = stored.get("scaling")
        if scaling is None:
            return cls(**stored)
        checks.choice("scaling.type", scaling.get("type"), tuple(SCALINGS))
        fields_of = {name: value for name, value in scaling.items() if name != "type"}
        return cls(**{**stored, "scaling": SCALINGS[scaling["type"]](**fields_of)})


def plain(config: Any) -> Any:
    """A config's fields as JSON has them."""
    if isinstance(config, tuple):
        return list(config)
    if not is_dataclass(config) or isinstance(config, type):
        return config
    types = {kind: name for name, kind in SCALINGS.items()}
    named = {"type": types[type(config)]} if isinstance(config, RopeScaling) else {}
    return named | {field.name: plain(getattr(config, field.name)) for field in fields(config)}

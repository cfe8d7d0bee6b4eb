"""RoPE settings of a config.json, old style (rope_theta, rope_scaling) and new (rope_parameters), both ways.

Source: transformers 5.23, `modeling_rope_utils.py`, and `convert_rope_params_to_dict` of gemma3 and phi3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gqa_spec.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from gqa_weights.families.settings import Settings, switched_off

ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta")
SHARED_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}  # the last is never read
YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
OPTIONS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", *YARN_OPTIONS},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"},
}
TYPES = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    YarnScaling: "yarn",
    Llama3Scaling: "llama3",
    LongropeScaling: "longrope",
}


@dataclass(frozen=True, kw_only=True)
class RopeDefaults:
    """What a family's code takes for RoPE.

    theta: the base. local_theta: that of layers with a window, where they have a RoPE of their own, and local_key the
    key for it. earlier_types: types by the names that the family's first files have. unread: keys that do not matter.
    alpha: a key `alpha` stretches the base, as HunYuan's files say with the type "dynamic".
    """

    theta: float = 10_000.0
    local_theta: float | None = None
    local_key: str = "rope_local_base_freq"
    earlier_types: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    alpha: bool = False


class RopeSettings:
    """One dictionary of RoPE settings, `rope_scaling` or what `rope_parameters` holds, of a config.json."""

    def __init__(self, settings: Settings, key: str, values: Any, defaults: RopeDefaults, max_length: int) -> None:
        if not isinstance(values, Mapping):
            raise settings.wrong(key, "a dictionary")
        self.settings, self.key, self.values, self.max_length = settings, key, dict(values), max_length
        self.unread = set(defaults.unread)
        self.alpha = self.values.pop("alpha", None) if defaults.alpha else None
        self.theta = self.number("rope_theta", defaults.theta)
        kind = self.values.get("rope_type", self.values.get("type", "default"))
        self.kind = defaults.earlier_types.get(kind, kind) if isinstance(kind, str) else kind
        if self.alpha is not None and self.kind == "dynamic":
            self.kind, self.unread = "default", self.unread | set(YARN_OPTIONS) | {"factor"}

    def config(self, head_dim: int) -> RopeConfig:
        if not isinstance(self.kind, str) or self.kind not in OPTIONS:
            raise self.error(f"type {self.kind!r}")
        given = {key for key, value in self.values.items() if not switched_off(value)}
        unknown = given - self.unread - SHARED_KEYS - OPTIONS[self.kind]
        if unknown:
            raise self.error(f"{', '.join(sorted(map(str, unknown)))} with type {self.kind!r}")
        rotary = int(head_dim * self.share(head_dim))
        if self.alpha is not None:
            self.theta *= self.number("alpha", self.alpha) ** (head_dim / (head_dim - 2))
        return RopeConfig(theta=self.theta, rotary_dim=None if rotary == head_dim else rotary, scaling=self.scaling())

    def share(self, head_dim: int) -> float:
        """How much of a head rotates, for families whose code has a choice."""
        if self.settings.reads("rotary_dim"):
            rotary = self.settings.integer("rotary_dim", optional=True)
            return self.number("partial_rotary_factor", 1.0 if rotary is None else rotary / head_dim)
        partial = self.settings.reads("partial_rotary_factor")
        usual = self.settings.number("partial_rotary_factor") if partial else 1.0
        share = self.number("partial_rotary_factor", usual)
        if share != 1 and not partial:
            raise self.error(f"partial_rotary_factor {share!r}")
        return share

    def scaling(self) -> RopeScaling | None:
        original = self.original()
        match self.kind:
            case "linear":
                return LinearScaling(factor=self.number("factor"))
            case "dynamic":
                # transformers stretches from max_position_embeddings, whatever the dictionary says
                if original != self.max_length:
                    raise self.error(f"original_max_position_embeddings {original} with type 'dynamic'")
                return DynamicScaling(factor=self.number("factor"), original_max_position_embeddings=original)
            case "yarn":
                given: dict[str, Any] = {key: self.values.get(key) for key in YARN_OPTIONS}
                # as transformers reads them, 0 and null mean the default
                given = {key: value for key, value in given.items() if value or value is False}
                return YarnScaling(factor=self.factor(), original_max_position_embeddings=original, **given)
            case "llama3":
                factors = {key: self.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
                return Llama3Scaling(original_max_position_embeddings=original, **factors)
            case "longrope":
                return LongropeScaling(
                    short_factor=self.numbers("short_factor"),
                    long_factor=self.numbers("long_factor"),
                    original_max_position_embeddings=original,
                    factor=max(1.0, self.factor()),
                    attention_factor=self.values.get("attention_factor"),
                )
        return None

    def original(self) -> Any:
        if self.settings.reads("original_max_position_embeddings"):  # phi3's: the key beside the dictionary decides
            return self.settings.integer("original_max_position_embeddings")
        value = self.values.get("original_max_position_embeddings", self.max_length)
        if not isinstance(value, int) or value < 1:
            raise self.error(f"original_max_position_embeddings {value!r}")
        return value

    def factor(self) -> float:
        if self.values.get("factor") is None:
            return self.max_length / self.original()
        return self.number("factor")

    def number(self, key: str, default: Any = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"{key} {value!r}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        if not isinstance(value, list | tuple):
            raise self.error(f"{key} {value!r}")
        return tuple(value)

    def error(self, what: str) -> ValueError:
        return ValueError(
            f"{self.settings.source}: {self.key} {what} of family {self.settings.family} is not supported"
        )


def read_rope(settings: Settings, head_dim: int, max_length: int, defaults: RopeDefaults) -> dict[bool, RopeConfig]:
    """Whether a layer has a window -> its RopeConfig, where it rotates at all."""
    if defaults.local_theta is not None:
        return _by_layer_type(settings, head_dim, max_length, defaults)
    settings.skip(*ROPE_KEYS)
    key, values = _dictionary(settings)
    based = replace(defaults, theta=_base(settings, "rope_theta", defaults.theta))
    return dict.fromkeys((False, True), RopeSettings(settings, key, values, based, max_length).config(head_dim))


def read_query_scale(settings: Settings) -> dict[str, Any]:
    """Ministral 3's scale of queries by their positions, from the same dictionary."""
    key, values = _dictionary(settings)
    if not isinstance(values, Mapping) or values.get("llama_4_scaling_beta") is None:
        raise settings.wrong(key, "a dictionary with llama_4_scaling_beta and original_max_position_embeddings")
    return {
        "query_scale_beta": values["llama_4_scaling_beta"],
        "query_scale_length": values.get("original_max_position_embeddings"),
    }


def _by_layer_type(
    settings: Settings, head_dim: int, max_length: int, defaults: RopeDefaults
) -> dict[bool, RopeConfig]:
    """Gemma 3's two: the base, and in old files the scaling, of full layers; the local base of sliding ones."""
    settings.skip(*ROPE_KEYS, defaults.local_key)
    nested = settings.get("rope_parameters") if settings.given("rope_parameters") else {}
    if not isinstance(nested, Mapping) or set(nested) - {"full_attention", "sliding_attention"}:
        raise settings.wrong("rope_parameters", "a dictionary for full_attention and one for sliding_attention")
    scaling = settings.get("rope_scaling") if settings.given("rope_scaling") else {}
    if not isinstance(scaling, Mapping):
        raise settings.wrong("rope_scaling", "a dictionary")
    result = {}
    for slides, kind, key, default, extra in (
        (False, "full_attention", "rope_theta", defaults.theta, scaling),
        (True, "sliding_attention", defaults.local_key, defaults.local_theta, {}),
    ):
        based = replace(defaults, theta=_base(settings, key, default))
        values = nested.get(kind) or {}
        if not isinstance(values, Mapping):
            raise settings.wrong("rope_parameters", f"a dictionary for {kind}")
        name = "rope_scaling" if extra else f"rope_parameters for {kind}"
        result[slides] = RopeSettings(settings, name, {**values, **extra}, based, max_length).config(head_dim)
    return result


def _base(settings: Settings, key: str, default: float | None) -> Any:
    value = settings.number(key, optional=True)
    return default if value is None else value


def _dictionary(settings: Settings) -> tuple[str, Any]:
    for key in ("rope_scaling", "rope_parameters"):
        if settings.values.get(key):
            return key, settings.get(key)
    return "rope_parameters", settings.defaults["rope_parameters"] or {}


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` dictionary, or None."""
    if scaling is None:
        return None
    values = ((field, getattr(scaling, field.name)) for field in fields(scaling))
    given = {field.name: value for field, value in values if value != field.default}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return {"rope_type": TYPES[type(scaling)], **lists}

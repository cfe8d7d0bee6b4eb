"""The settings of an attention layer: keyword-only, frozen, hashable, validated once and here; and its weights' shapes.

The axis alphabet, used in code, docs and messages alike: B batch, T queries, S keys, D width (embed_dim), E width of
key and value (kv_dim), N query heads, K key/value heads, G = N / K, H head size, Hv value head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar, Literal, Self, TypedDict

from gqa_spec import checks
from gqa_spec.rope import DynamicScaling, LongropeScaling, RopeConfig, plain

QKNorm = Literal["rms", "rms_plus_one", "rms_full"]

# A size left out is derived from the others at construction, so every reader of a config sees plain numbers.
DERIVED: Any = None
SIZES = ("num_kv_heads", "head_dim", "v_head_dim", "kv_dim")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The settings of one attention layer.

    Args:
        embed_dim: D, the width of query and output.
        num_heads: N, the number of query heads.
        num_kv_heads: K, the number of key/value heads; N by default.
        head_dim: H, the head size of query and key; D / N by default.
        v_head_dim: Hv, the head size of value; H by default.
        kv_dim: E, the width of key and value; D by default.
        qkv_bias: Whether the projections of query, key and value have a bias.
        out_bias: Whether the output projection has a bias.
        dropout: Probability with which an attention weight is dropped in training mode.
        causal: Whether a query sees only keys up to its own position (SPEC 4).
        window: How many keys a query sees, its own position included (SPEC 4); None for all.
        chunk: Queries see keys of their own chunk of so many positions only (SPEC 4); None for all.
        scale: Factor on query . key; H ** -0.5 by default.
        softcap: Scores become softcap * tanh(scores / softcap); None for no cap.
        sinks: Whether there is one learned logit for each query head (SPEC 8).
        qk_norm: How queries and keys are normed (SPEC 11), None for not.
        qk_norm_eps: Added to the mean square in that norm.
        qk_norm_after_rope: Whether that norm follows the rotation (HunYuan) instead of preceding it.
        rope: How queries and keys are rotated (SPEC 10): a RopeConfig, True for `RopeConfig()`, None for not.
        query_scale_beta: Queries are multiplied by 1 + beta * log(1 + position // length), after norm and
            rotation (SPEC 10); None for not.
        query_scale_length: That length, the context after which the factor starts to grow.
        output_gate: Whether the context is multiplied by sigmoid(gate_proj(query)) before the output projection.

    Raises:
        ValueError: For a number out of range or settings that contradict each other.
        TypeError: For the wrong kind of value.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int = DERIVED
    head_dim: int = DERIVED
    v_head_dim: int = DERIVED
    kv_dim: int = DERIVED
    qkv_bias: bool = False
    out_bias: bool = False
    dropout: float = 0.0
    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    qk_norm: QKNorm | None = None
    qk_norm_eps: float = 1e-6
    qk_norm_after_rope: bool = False
    rope: RopeConfig | None = None
    query_scale_beta: float | None = None
    query_scale_length: int | None = None
    output_gate: bool = False
    _derived: ClassVar[frozenset[str]] = frozenset()  # which sizes were left out, set for each instance

    def __post_init__(self) -> None:
        checks.integer("embed_dim", self.embed_dim, symbol="D", at_least=1)
        checks.integer("num_heads", self.num_heads, symbol="N", at_least=1)
        # not a field: equal sizes make equal configs, given or derived
        object.__setattr__(self, "_derived", frozenset(name for name in SIZES if getattr(self, name) is None))
        self._derive("num_kv_heads", self.num_heads, symbol="K")
        checks.divides("num_kv_heads", self.num_kv_heads, self.num_heads)
        if self.head_dim is None:
            checks.splits_width(self.embed_dim, self.num_heads)
        self._derive("head_dim", self.embed_dim // self.num_heads, symbol="H")
        self._derive("v_head_dim", self.head_dim, symbol="Hv")
        self._derive("kv_dim", self.embed_dim, symbol="E")
        for name in ("qkv_bias", "out_bias", "sinks", "qk_norm_after_rope", "output_gate"):
            checks.boolean(name, getattr(self, name))
        checks.number("dropout", self.dropout, at_least=0, below=1)
        checks.attention_settings(self.causal, self.window, self.chunk, self.scale, self.softcap)
        checks.choice("qk_norm", self.qk_norm, ("rms", "rms_plus_one", "rms_full"), optional=True)
        checks.number("qk_norm_eps", self.qk_norm_eps, at_least=0)
        if isinstance(self.rope, bool):
            object.__setattr__(self, "rope", RopeConfig() if self.rope else None)
        checks.rope(self.rope, RopeConfig)
        checks.norm_after_rope(self.qk_norm_after_rope, self.qk_norm, self.rope)
        checks.query_scale(self.query_scale_beta, self.query_scale_length)
        if self.rope is not None:
            checks.rotary_dim(self.rotary_dim, self.head_dim)
            if isinstance(self.rope.scaling, DynamicScaling):
                checks.integer("rotary_dim with dynamic scaling", self.rotary_dim, at_least=4)
            if isinstance(self.rope.scaling, LongropeScaling):
                checks.longrope_factors(self.rope.scaling, self.rotary_dim)

    def _derive(self, name: str, default: int, symbol: str) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)
        checks.integer(name, getattr(self, name), symbol=symbol, at_least=1)

    def replace(self, **changes: Any) -> Self:
        """A copy with other settings; a size that was derived, and is not among them, is derived again.

        Raises:
            ValueError: As the constructor.
            TypeError: As the constructor.
        """
        kept = {name: getattr(self, name) for name in CONFIG_FIELDS if name not in self._derived}
        return type(self)(**(kept | changes))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return plain(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: For a number out of range or settings that contradict each other.
            TypeError: For an unknown name or the wrong kind of value.
        """
        rope = stored.get("rope")
        return cls(**{**stored, "rope": None if rope is None else RopeConfig.from_dict(rope)})

    def summary(self) -> str:
        """embed_dim, num_heads and num_kv_heads, and each further field that differs from its default."""
        defaults = {field.name: field.default for field in fields(self)}
        defaults |= {"head_dim": self.embed_dim / self.num_heads, "v_head_dim": self.head_dim, "kv_dim": self.embed_dim}
        always = ("embed_dim", "num_heads", "num_kv_heads")
        values = {name: getattr(self, name) for name in defaults}
        return ", ".join(f"{n}={x!r}" for n, x in values.items() if n in always or x != defaults[n])

    @property
    def group_size(self) -> int:
        """G: how many query heads read one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of a head rotate (0 without rope)."""
        if self.rope is None:
            return 0
        return self.rope.rotary_dim or self.head_dim

    @property
    def query_scale(self) -> tuple[float, int] | None:
        """query_scale_beta and query_scale_length, where they are on."""
        if self.query_scale_beta is None or self.query_scale_length is None:
            return None
        return self.query_scale_beta, self.query_scale_length

    @property
    def uses_positions(self) -> bool:
        """Whether queries depend on their positions, not only on which keys they see."""
        return self.rope is not None or self.query_scale is not None

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the axis alphabet that a layer's weights have."""
        return {
            "D": self.embed_dim,
            "E": self.kv_dim,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "G": self.group_size,
            "H": self.head_dim,
            "Hv": self.v_head_dim,
        }


CONFIG_FIELDS = tuple(field.name for field in fields(AttentionConfig))


class AttentionSettings(TypedDict, total=False):
    """The fields of `AttentionConfig` that a layer takes by keyword alone, so that type checkers see their types."""

    head_dim: int
    v_head_dim: int
    kv_dim: int
    qkv_bias: bool
    out_bias: bool
    causal: bool
    window: int | None
    chunk: int | None
    scale: float | None
    softcap: float | None
    sinks: bool
    qk_norm: QKNorm | None
    qk_norm_eps: float
    qk_norm_after_rope: bool
    rope: RopeConfig | bool | None
    query_scale_beta: float | None
    query_scale_length: int | None
    output_gate: bool


def layer_config(
    embed_dim: int, num_heads: int, num_kv_heads: int, dropout: float, settings: Mapping[str, object]
) -> AttentionConfig:
    """The config that a layer's arguments make."""
    chosen: dict[str, Any] = dict(settings)
    return AttentionConfig(
        embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, dropout=dropout, **chosen
    )


def symbolic_shapes(config: AttentionConfig) -> dict[str, str]:
    """Canonical name -> symbolic shape over the axis alphabet, in canonical order, of every weight that is on."""
    full = config.qk_norm == "rms_full"
    table = {
        "q_proj.weight": ("N*H, D", True),
        "q_proj.bias": ("N*H,", config.qkv_bias),
        "k_proj.weight": ("K*H, E", True),
        "k_proj.bias": ("K*H,", config.qkv_bias),
        "v_proj.weight": ("K*Hv, E", True),
        "v_proj.bias": ("K*Hv,", config.qkv_bias),
        "o_proj.weight": ("D, N*Hv", True),
        "o_proj.bias": ("D,", config.out_bias),
        "gate_proj.weight": ("N*Hv, D", config.output_gate),
        "gate_proj.bias": ("N*Hv,", config.output_gate and config.qkv_bias),
        "q_norm.weight": ("N*H," if full else "H,", config.qk_norm is not None),
        "k_norm.weight": ("K*H," if full else "H,", config.qk_norm is not None),
        "sinks": ("N,", config.sinks),
    }
    return {name: symbols for name, (symbols, on) in table.items() if on}


def weight_shapes(config: AttentionConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape in numbers."""
    return {name: sized(symbols, config.axes) for name, symbols in symbolic_shapes(config).items()}


def sized(symbols: str, axes: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers."""
    return tuple(
        prod(axes[factor] for factor in axis.strip().split("*")) for axis in symbols.split(",") if axis.strip()
    )

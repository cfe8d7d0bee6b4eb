"""The families of a Hugging Face folder: config.json <-> ModelConfig, by a family's record.

Every function below is written in the usual keys, those of Llama; `Settings` translates where a family has another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import MOST_LAYERS, ModelConfig
from gqa_spec.rope import LongropeScaling
from gqa_weights.families.converted import TensorMapping
from gqa_weights.families.experts_json import OF_TRAINING, ExpertKeys, read_experts, written_experts
from gqa_weights.families.float8 import refusal
from gqa_weights.families.generic_keys import IGNORED, OF_EXPERTS, ONLY
from gqa_weights.families.layer_rules import LAYER_TYPES, LayerRule, every_layer, no_layer
from gqa_weights.families.record import Family, Values
from gqa_weights.families.rope_json import RopeDefaults, read_query_scale, read_rope, write_scaling
from gqa_weights.families.settings import Settings

FILE = "config.json"
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFamily(Family):
    """One model_type of transformers.

    architecture: the start of its classes' names. defaults: each key that its code reads -> what the code takes where
    the key is missing. sizes: the same for SIZES, which the text_config of larger models may leave out. keys: usual key
    -> its own. attention, model: fields of the configs that its code fixes. requires: keys of which it has only one
    value here, missing or not. parallel: what `use_parallel_residual` means. attends, windows, rotates: the rules for
    which layers have attention, a window, and RoPE. rope: what its code takes for RoPE. scales_queries: the dictionary
    of RoPE also says how queries are scaled by their positions. scaled_embedding: the embedding is multiplied by the
    root of the width. dropouts: keys of dropout outside of attention, all of which must agree. activations: names of
    activations that mean something else here. activation_beside: another key for the activation, which its files hold
    too and its code does not read. only: keys that its files hold and its code does not read, and the values of them
    that it computes. repeats: such keys, and the key that says the same. ignored: keys that do not matter here.
    experts: what it takes for a mixture of experts.
    """

    architecture: str
    defaults: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    attention: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    parallel: str | None = None
    attends: LayerRule = every_layer
    windows: LayerRule = no_layer
    rotates: LayerRule = every_layer
    rope: RopeDefaults = field(default_factory=RopeDefaults)
    scales_queries: bool = False
    scaled_embedding: bool = False
    dropouts: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=dict)
    activation_beside: str = ""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    experts: ExpertKeys | None = None

    file: ClassVar[str] = FILE

    def settings(self, values: Values) -> Settings:
        return Settings(values, FILE, self.name, self.defaults, self.keys)

    def read_config(self, values: Values, tensors: TensorMapping) -> ModelConfig:
        self.require_whole()
        settings = self.settings(values)
        _require_weights(self, settings)
        _require(self, settings)
        config = _model(self, settings)
        settings.finish(IGNORED | self.ignored | (OF_TRAINING if self.experts else frozenset()))
        return config

    def read_attention(self, values: Values, tensors: TensorMapping) -> tuple[AttentionConfig, ...]:
        if not self.attention_only:
            return self.read_config(values, tensors).attention
        settings = self.settings(values)
        _require(self, settings)
        attention = _attention(self, settings)
        settings.skip(*SIZES, "hidden_act", "tie_word_embeddings", "rms_norm_eps")
        settings.finish(IGNORED | self.ignored | {key for key in values if OF_EXPERTS.fullmatch(key)})
        return attention

    def attention_layers(self, values: Values, count: int) -> Sequence[int]:
        settings = self.settings(values)
        attends = self.attends(settings, settings.integer("num_hidden_layers", most=MOST_LAYERS))
        return [number for number, attends_here in enumerate(attends) if attends_here]

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        if not self.writable:
            return super().write_config(config)
        return _written(self, config)


# --- config.json -> configs ------------------------------------------------------------------------------------------


def _model(family: HuggingFaceFamily, s: Settings) -> ModelConfig:
    attention = _attention(family, s)
    width = attention[0].embed_dim
    read = {
        "attention": attention,
        "feed_forward_size": _optional_size(s, "intermediate_size") or 4 * width,
        "vocab_size": s.integer("vocab_size"),
        "norm_eps": s.number("rms_norm_eps"),
        "activation": _activation(family, s),
        "feed_forward_bias": s.reads("mlp_bias") and s.flag("mlp_bias"),
        "tied": s.flag("tie_word_embeddings"),
        "embedding_scale": _factor(s, "embedding_multiplier") * (width**0.5 if family.scaled_embedding else 1.0),
        "residual_scale": _factor(s, "residual_multiplier"),
        "logit_scale": _factor(s, "logit_scale") / _factor(s, "logits_scaling"),
        "parallel": _parallel(family, s),
        "experts": None if family.experts is None else read_experts(family.experts, s, len(attention)),
        "logit_softcap": _optional(s, "final_logit_softcapping"),
        "dropout": _dropout(family, s),
        "max_length": s.integer("max_position_embeddings"),
    }
    return ModelConfig(**{**read, **family.model})


def _attention(family: HuggingFaceFamily, s: Settings) -> tuple[AttentionConfig, ...]:
    layers = s.integer("num_hidden_layers", most=MOST_LAYERS)
    shared = _shared(family, s)
    slides, rotates, attends = (rule(s, layers) for rule in (family.windows, family.rotates, family.attends))
    if not any(attends):
        raise s.unsupported("layer_types", ": no layer has attention")
    s.skip("sliding_window")  # which says nothing where no layer slides, be it 0
    window = s.integer("sliding_window", optional=True) if any(slides) else None
    if any(slides) and window is None:
        raise s.unsupported("layer_types", ": sliding_attention without a sliding_window")
    ropes = read_rope(s, shared["head_dim"], s.integer("max_position_embeddings"), family.rope)
    return tuple(
        AttentionConfig(**shared, window=window if slide else None, rope=ropes[slide] if rotate else None)
        for slide, rotate, attends_here in zip(slides, rotates, attends, strict=True)
        if attends_here
    )


def _shared(family: HuggingFaceFamily, s: Settings) -> dict[str, Any]:
    """What is the same in every layer."""
    heads, width = s.integer("num_attention_heads"), s.integer("hidden_size")
    head_dim = _optional_size(s, "head_dim") or width // heads
    bias = s.reads("attention_bias") and s.flag("attention_bias")
    out_bias = s.flag("attention_out_bias") if s.reads("attention_out_bias") else bias
    shared = {
        "embed_dim": width,
        "num_heads": heads,
        "head_dim": head_dim,
        "causal": True,
        "num_kv_heads": _optional_size(s, "num_key_value_heads") or heads,
        "qkv_bias": bias,
        "out_bias": out_bias,
        "dropout": _dropout_of_weights(s),
        "scale": _scale(s, head_dim),
        "softcap": _optional(s, "attn_logit_softcapping"),
        **family.attention,
    }
    if family.scales_queries:
        shared |= read_query_scale(s)
    if s.reads("use_qk_norm") and not s.flag("use_qk_norm"):
        del shared["qk_norm"]
    if "qk_norm" in shared:
        shared["qk_norm_eps"] = s.number("rms_norm_eps")
    return shared


def _dropout_of_weights(s: Settings) -> float:
    return float(s.number("attention_dropout")) if s.reads("attention_dropout") else 0.0


def _optional_size(s: Settings, key: str) -> int | None:
    return s.integer(key, optional=s.defaults.get(s.key(key), 0) is None) if s.reads(key) or key in SIZES else None


def _factor(s: Settings, key: str) -> float:
    return float(s.number(key)) if s.reads(key) else 1.0


def _parallel(family: HuggingFaceFamily, s: Settings) -> Any:
    if s.reads("num_ln_in_parallel_attn"):
        norms = s.integer("num_ln_in_parallel_attn", optional=True, most=2)
        return "shared_norm" if norms == 1 else "own_norms"
    if s.reads("use_parallel_residual"):
        return family.parallel if s.flag("use_parallel_residual") else None
    return family.parallel


def _scale(s: Settings, head_dim: int) -> float | None:
    if s.reads("attention_multiplier"):
        multiplier = s.number("attention_multiplier")
        return None if multiplier == head_dim**-0.5 else multiplier
    if not s.reads("query_pre_attn_scalar"):
        return None
    scalar = s.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise s.wrong("query_pre_attn_scalar", "a number > 0")
    return None if scalar == head_dim else scalar**-0.5


def _optional(s: Settings, key: str) -> float | None:
    return s.number(key, optional=True) if s.reads(key) else None


def _activation(family: HuggingFaceFamily, s: Settings) -> Any:
    named = s.choice("hidden_act", {**ACTIVATIONS, **family.activations})
    beside = family.activation_beside
    if beside in s.values:
        s.done.add(beside)
        if s.values[beside] not in (None, "gelu", s.get("hidden_act")):
            read = f"{s.key('hidden_act')} {s.get('hidden_act')!r}"
            raise ValueError(
                f"{FILE}: {beside} {s.values[beside]!r} of family {family.name} is not supported beside {read}"
            )
    return named


def _dropout(family: HuggingFaceFamily, s: Settings) -> float:
    """After the embedding and after each sublayer: one number."""
    values = {key: float(s.number(key)) for key in family.dropouts}
    if len(set(values.values())) > 1:
        key, other = values
        raise s.unsupported(key, f" beside {other} {values[other]!r}")
    return max(values.values(), default=0.0)


def _require_weights(family: HuggingFaceFamily, s: Settings) -> None:
    refused = refusal(s.values.get("quantization_config"))
    if refused is not None:
        raise ValueError(f"{FILE}: {refused} of family {family.name} is not supported, only FP8 and MXFP4 with scales")
    s.skip("quantization_config")


def _require(family: HuggingFaceFamily, s: Settings) -> None:
    """Settings of which the family has only some values."""
    for key, values in {**ONLY, **family.only}.items():
        if not s.reads(key) or key in family.only:
            s.only(key, *values)
    for key, value in family.requires.items():
        if s.get(key) != value:
            raise ValueError(f"{FILE}: {key} {s.get(key)!r} of family {family.name} is not supported, only {value!r}")
    for key, read in family.repeats.items():
        s.only(key, None, s.get(read))


# --- ModelConfig -> config.json --------------------------------------------------------------------------------------


def _written(family: HuggingFaceFamily, config: ModelConfig) -> dict[str, Any]:
    """RoPE in the old style, which transformers 4 and 5 both read: 4 would ignore rope_parameters in silence."""
    first = config.attention[0]
    sliding = [layer.window is not None for layer in config.attention]
    scalar = (first.scale or first.head_dim**-0.5) ** -2
    table = {
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": _activation_name(family, config),
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_dropout": first.dropout,
        "attention_bias": first.qkv_bias,
        "attention_out_bias": first.out_bias,
        "attention_multiplier": first.head_dim**-0.5 if first.scale is None else first.scale,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": _rounded(1 / config.logit_scale),
        "logit_scale": config.logit_scale,
        "use_parallel_residual": config.parallel is not None,
        "num_ln_in_parallel_attn": 1 if config.parallel == "shared_norm" else 2,
        "mlp_bias": config.feed_forward_bias,
        "query_pre_attn_scalar": _rounded(scalar),
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": first.softcap,
        "sliding_window": next((layer.window for layer in config.attention if layer.window is not None), None),
        "use_sliding_window": any(sliding),
        "layer_types": [LAYER_TYPES[slides] for slides in sliding],
        "no_rope_layers": [int(layer.rope is not None) for layer in config.attention],
        **dict.fromkeys(family.dropouts, config.dropout),
        **_rope_keys(config, family.rope),
        **({} if family.experts is None else written_experts(family.experts, config)),
    }
    sizes = (config.vocab_size, config.hidden_size, config.feed_forward_size, config.num_layers, first.num_heads)
    if config.max_length is None:
        del table["max_position_embeddings"]
    own = {family.keys.get(key, key): value for key, value in table.items()}
    understood = {key: value for key, value in own.items() if key in family.defaults}
    names = {"model_type": family.name, "architectures": [f"{family.architecture}ForCausalLM"]}
    named = {family.keys.get(key, key): size for key, size in zip(SIZES, sizes, strict=True)}
    return {**names, **named, **understood, **family.requires}


def _rounded(x: float) -> float:
    """A number that went through an inverse, or a root: 256, not 255.99999999999997."""
    return round(x) if abs(x - round(x)) < 1e-6 else float(f"{x:.12g}")


def _activation_name(family: HuggingFaceFamily, config: ModelConfig) -> str:
    """The family's own name of it, where there are several."""
    usual = family.defaults.get(family.keys.get("hidden_act", "hidden_act"))
    means_it = isinstance(usual, str) and ACTIVATIONS[usual] == config.activation
    return str(usual) if means_it else ACTIVATION_NAMES[config.activation]


def _rope_keys(config: ModelConfig, defaults: RopeDefaults) -> dict[str, Any]:
    whole = [layer for layer in config.attention if layer.window is None] or list(config.attention)
    layer = next((layer for layer in whole if layer.rope is not None), None)
    local = next((layer.rope for layer in config.attention if layer.window is not None), None)
    if layer is None or layer.rope is None:
        return {}
    keys: dict[str, Any] = {"rope_theta": layer.rope.theta, "rope_scaling": write_scaling(layer.rope.scaling)}
    if layer.query_scale is not None and keys["rope_scaling"] is not None:
        keys["rope_scaling"]["llama_4_scaling_beta"] = layer.query_scale_beta
    keys["partial_rotary_factor"] = layer.rotary_dim / layer.head_dim
    if local is not None:
        keys[defaults.local_key] = local.theta
    # Olmo 3's one base, which transformers 5 takes from here for sliding layers
    if defaults.local_theta is not None and defaults.local_key == "rope_theta":
        keys["rope_parameters"] = {
            "full_attention": {"rope_theta": layer.rope.theta, **(keys["rope_scaling"] or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": layer.rope.theta, "rope_type": "default"},
        }
    if isinstance(layer.rope.scaling, LongropeScaling):
        keys["original_max_position_embeddings"] = layer.rope.scaling.original_max_position_embeddings
    return keys

"""The settings of a Hugging Face folder: config.json <-> ModelConfig, by the tables of huggingface_tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_spec.config import AttentionConfig, LongropeScaling, RopeConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights.families.huggingface_tables import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    CLASSES,
    DEFAULTS,
    DROPOUTS,
    FIXED,
    FIXED_ATTENTION,
    IGNORED,
    IGNORED_OF_EXPERTS,
    LAYER_TYPES,
    LOCAL_THETA,
    SIZES,
    THETA,
)
from gqa_weights.families.rope import ROPE_KEYS, read_rope, read_rope_by_layer_type, write_scaling
from gqa_weights.families.settings import MOST_LAYERS, Settings

FILE = "config.json"

# --- config.json -> configs ------------------------------------------------------------------------------------------


def read_config(family: str, values: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. Raises ValueError that names each setting that is unknown or unsupported."""
    if family == "gpt_oss":
        raise ValueError(
            f"{FILE}: num_local_experts of family gpt_oss is not supported: only its attention can be read"
        )
    s = _settings(family, values)
    attention = _attention(s)
    scale = attention[0].embed_dim ** 0.5 if family.startswith("gemma") else 1.0
    config = ModelConfig(
        attention=attention,
        feed_forward_size=s.integer("intermediate_size"),
        vocab_size=s.integer("vocab_size"),
        norm_eps=s.number(_eps(family)),
        activation=_activation(s),
        feed_forward_bias=_bias(s, "mlp_bias"),
        tied=s.flag("tie_word_embeddings"),
        embedding_scale=scale,
        logit_softcap=_optional(s, "final_logit_softcapping"),
        dropout=_dropout(s),
        max_length=s.integer("max_position_embeddings"),
        **FIXED.get(family, {}),
    )
    _refuse(s)
    s.finish(IGNORED)
    return config


def read_attention(family: str, values: Mapping[str, Any]) -> tuple[AttentionConfig, ...]:
    """config.json -> the settings of each attention layer, for families whose other parts we do not have too."""
    if family != "gpt_oss":
        return read_config(family, values).attention
    s = _settings(family, values)
    attention = _attention(s)
    for key in (*SIZES, "hidden_act", "tie_word_embeddings", "rms_norm_eps"):
        s.get(key)
    s.finish(IGNORED | IGNORED_OF_EXPERTS)
    return attention


def _settings(family: str, values: Mapping[str, Any]) -> Settings:
    s = Settings(values, FILE, family, DEFAULTS[family])
    s.asked.update(ROPE_KEYS)
    return s


def _attention(s: Settings) -> tuple[AttentionConfig, ...]:
    layers = s.integer("num_hidden_layers", most=MOST_LAYERS)
    heads, width = s.integer("num_attention_heads"), s.integer("hidden_size")
    head_dim = s.integer("head_dim", optional=True) or width // heads
    bias = _bias(s, "attention_bias")
    shared = {
        "embed_dim": width, "num_heads": heads, "head_dim": head_dim, "causal": True,
        "num_kv_heads": s.integer("num_key_value_heads", optional=True) or heads,
        "qkv_bias": bias, "out_bias": bias, "dropout": float(s.number("attention_dropout")),
        "scale": _scale(s, head_dim), "softcap": _optional(s, "attn_logit_softcapping"),
        **FIXED_ATTENTION.get(s.family, {}),
    }  # fmt: skip
    if "qk_norm" in shared:
        shared["qk_norm_eps"] = s.number("rms_norm_eps")
    sliding = _sliding(s, layers)
    window = s.integer("sliding_window", optional=True) if s.understands("sliding_window") else None
    if any(sliding) and window is None:
        raise s.unsupported("layer_types", ": sliding_attention without a sliding_window")
    ropes = _ropes(s, head_dim, sliding)
    return tuple(
        AttentionConfig(**shared, window=window if slides else None, rope=rope)
        for slides, rope in zip(sliding, ropes, strict=True)
    )


def _sliding(s: Settings, layers: int) -> list[bool]:
    """Which layers look through the window."""
    if not s.understands("layer_types"):
        window = s.get("sliding_window") if s.understands("sliding_window") else None
        return [window is not None] * layers
    switched_off = s.understands("use_sliding_window") and not s.flag("use_sliding_window")
    for key in ("max_window_layers", "sliding_window_pattern", "no_rope_layer_interval"):
        if s.understands(key):
            s.asked.add(key)
    if s.get("layer_types") is not None:
        sliding = [kind == "sliding_attention" for kind in s.list_of("layer_types", LAYER_TYPES, layers)]
        if switched_off and any(sliding):
            raise s.unsupported("layer_types", ": sliding_attention with use_sliding_window false")
        return sliding
    if switched_off or s.get("sliding_window") is None:
        return [False] * layers
    if s.family in ("qwen2", "qwen3"):
        full = s.get("max_window_layers")
        if not isinstance(full, int):
            raise s.wrong("max_window_layers", "an integer")
        return [layer >= full for layer in range(layers)]
    if s.family == "smollm3":
        return [not rotates for rotates in _rotating(s, layers)]
    every = s.integer("sliding_window_pattern") if s.understands("sliding_window_pattern") else 2
    return [(layer + 1) % every != 0 for layer in range(layers)]


def _ropes(s: Settings, head_dim: int, sliding: list[bool]) -> list[RopeConfig | None]:
    longest = s.integer("max_position_embeddings")
    theta = THETA.get(s.family, 10_000.0)
    if s.family == "gemma3_text":
        s.asked.add("rope_local_base_freq")
        ropes = read_rope_by_layer_type(s, head_dim, longest, theta, LOCAL_THETA)
        return [ropes[LAYER_TYPES[slides]] for slides in sliding]
    if s.family == "phi3":
        s.asked.add("original_max_position_embeddings")
    rope = read_rope(s, head_dim, longest, theta)
    if s.family == "smollm3":
        return [rope if rotates else None for rotates in _rotating(s, len(sliding))]
    return [rope] * len(sliding)


def _rotating(s: Settings, layers: int) -> list[bool]:
    """SmolLM3's layers with RoPE: 1 in no_rope_layers means that the layer has it."""
    if s.get("no_rope_layers") is not None:
        return [bool(entry) for entry in s.list_of("no_rope_layers", (0, 1), layers)]
    every = s.integer("no_rope_layer_interval")
    return [(layer + 1) % every != 0 for layer in range(layers)]


def _bias(s: Settings, key: str) -> bool:
    if s.understands("use_bias"):
        return s.flag("use_bias")
    return s.understands(key) and s.flag(key)


def _scale(s: Settings, head_dim: int) -> float | None:
    if not s.understands("query_pre_attn_scalar"):
        return None
    scalar = s.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise s.wrong("query_pre_attn_scalar", "a number > 0")
    return None if scalar == head_dim else scalar**-0.5


def _optional(s: Settings, key: str) -> float | None:
    return s.number(key, optional=True) if s.understands(key) else None


def _activation(s: Settings) -> Any:
    key = _activation_key(s.family)
    named = s.choice(key, ACTIVATIONS)
    if s.family == "gemma" and s.get(key) == "gelu":  # what Gemma's first files say, and do not mean
        named = "gelu_tanh"
    other = {"hidden_act": "hidden_activation", "hidden_activation": "hidden_act"}[key]
    if s.family.startswith("gemma") and other in s.values:  # files of Gemma 1 and 2 hold both; the code reads one
        s.asked.add(other)
        if s.values[other] not in (None, "gelu", s.get(key)):
            raise s.unsupported(other, f" beside {key} {s.get(key)!r}")
    return named


def _dropout(s: Settings) -> float:
    """After the embedding and after each sublayer: one number."""
    values = {key: float(s.number(key)) for key in DROPOUTS.get(s.family, ())}
    if len(set(values.values())) > 1:
        key, other = values
        raise s.unsupported(key, f" beside {other} {values[other]!r}")
    return max(values.values(), default=0.0)


def _refuse(s: Settings) -> None:
    """Settings of which all but one value would change the maths."""
    for key in ("is_encoder_decoder", "use_bidirectional_attention", "add_cross_attention", "use_mrope"):
        s.only(key, False, None)
    s.only("rope_interleaved", False)
    s.only("quantization_config", None)
    if not s.understands("partial_rotary_factor"):
        s.only("partial_rotary_factor", None, 1, 1.0)
    if s.family in ("mistral", "phi3"):
        s.only("attention_bias", False)  # in files; the code has none
    if s.family == "gemma3_text":
        s.only("attn_logit_softcapping", None)  # in the settings, but not in the model's code


def _eps(family: str) -> str:
    return "norm_epsilon" if family == "starcoder2" else "rms_norm_eps"


def _activation_key(family: str) -> str:
    return "hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"


# --- ModelConfig -> config.json --------------------------------------------------------------------------------------


def write_config(family: str, config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json, as far as the family's keys go: the caller reads it back to see what they left out.

    RoPE in the old style, which transformers 4 and 5 both read: 4 would pass over rope_parameters in silence.
    """
    first = config.attention[0]
    sliding = [layer.window is not None for layer in config.attention]
    scalar = (first.scale or first.head_dim**-0.5) ** -2
    table = {
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": first.head_dim,
        _activation_key(family): ACTIVATION_NAMES[config.activation],
        "max_position_embeddings": config.max_length,
        _eps(family): config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_dropout": first.dropout,
        "attention_bias": first.qkv_bias,
        "mlp_bias": config.feed_forward_bias,
        "use_bias": first.qkv_bias,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": first.softcap,
        "sliding_window": next((layer.window for layer in config.attention if layer.window is not None), None),
        "use_sliding_window": any(sliding),
        "layer_types": [LAYER_TYPES[slides] for slides in sliding],
        "no_rope_layers": [int(layer.rope is not None) for layer in config.attention],
        **dict.fromkeys(DROPOUTS.get(family, ()), config.dropout),
        **_rope_keys(family, config),
    }
    sizes = (config.vocab_size, config.hidden_size, config.feed_forward_size, config.num_layers, first.num_heads)
    if config.max_length is None:
        del table["max_position_embeddings"]
    understood = {key: value for key, value in table.items() if key in DEFAULTS[family]}
    names = {"model_type": family, "architectures": [f"{CLASSES[family]}ForCausalLM"]}
    return {**names, **dict(zip(SIZES, sizes, strict=True)), **understood}


def _rope_keys(family: str, config: ModelConfig) -> dict[str, Any]:
    whole = [layer for layer in config.attention if layer.window is None] or list(config.attention)
    rope = next((layer.rope for layer in whole if layer.rope is not None), None)
    local = next((layer.rope for layer in config.attention if layer.window is not None), None)
    if rope is None:
        return {}
    keys = {"rope_theta": rope.theta, "rope_scaling": write_scaling(rope.scaling)}
    if local is not None:
        keys["rope_local_base_freq"] = local.theta
    if family == "phi3":
        keys["partial_rotary_factor"] = config.attention[0].rotary_dim / config.attention[0].head_dim
        if isinstance(rope.scaling, LongropeScaling):
            keys["original_max_position_embeddings"] = rope.scaling.original_max_position_embeddings
    return keys

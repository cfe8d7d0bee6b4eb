"""The families of a Hugging Face folder: settings of config.json <-> ModelConfig, and where the tensors stand.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23. DEFAULTS says what each family's code takes where
config.json is silent, and so which keys it understands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_spec.config import AttentionConfig, LongropeScaling, RopeConfig
from gqa_spec.model_config import ModelConfig
from gqa_spec.weights.families.names import Names
from gqa_spec.weights.families.rope import ROPE_KEYS, read_rope, read_rope_by_layer_type, write_scaling
from gqa_spec.weights.families.settings import MOST_LAYERS, Settings

FILE = "config.json"
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
LAYER_TYPES = ("full_attention", "sliding_attention")

# Keys that change no result of a model in eval mode, or whose whole content is in other keys.
IGNORED = {
    "_attn_implementation_autoset", "_name_or_path", "_sliding_window_pattern", "architectures", "attn_implementation",
    "auto_map", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "finetuning_task", "id2label", "initializer_range", "is_decoder", "is_llama_config", "keys_to_ignore_at_inference",
    "label2id", "max_sequence_length", "model_type", "num_labels", "output_attentions", "output_hidden_states",
    "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "task_specific_params", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_cache",
}  # fmt: skip
IGNORED_OF_EXPERTS = {
    "experts_per_token", "initial_context_length", "num_experts_per_tok", "num_local_experts", "output_router_logits",
    "quantization_config", "router_aux_loss_coef", "swiglu_alpha", "swiglu_limit",
}  # fmt: skip

_COMMON = {"attention_dropout": 0.0, "rope_parameters": None, "rope_scaling": None, "rope_theta": None}
_LLAMA = {
    **_COMMON, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
_WINDOWED = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None}
_QWEN2 = {
    **_COMMON, "num_key_value_heads": 32, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, **_WINDOWED,
}  # fmt: skip
_GEMMA2 = {
    **_COMMON, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "mlp_bias": False},
    "mistral": {
        **_COMMON, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096,
    },
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128, "attention_bias": False},
    "gemma": {
        **_COMMON, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2, "max_position_embeddings": 131072, "final_logit_softcapping": None, "attn_logit_softcapping": None,
        "rope_local_base_freq": None, "sliding_window_pattern": 6,
    },
    "phi3": {
        **_COMMON, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "sliding_window": None, "partial_rotary_factor": 1.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    "olmo2": {**_LLAMA, "rms_norm_eps": 1e-5},
    "starcoder2": {
        **_COMMON, "num_key_value_heads": 2, "head_dim": None, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "tie_word_embeddings": True, "sliding_window": None,
        "use_bias": True, "embedding_dropout": 0.0, "residual_dropout": 0.0,
    },
    "smollm3": {
        **_LLAMA, "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "mlp_bias": False, "sliding_window": None, "use_sliding_window": False, "layer_types": None,
        "no_rope_layers": None, "no_rope_layer_interval": 4,
    },
    "gpt_oss": {
        **_COMMON, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 128,
        "layer_types": None, "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
}  # fmt: skip
THETA = {"gemma3_text": 1_000_000.0, "smollm3": 2_000_000.0, "gpt_oss": 150_000.0}
LOCAL_THETA = 10_000.0

# What the code of a family does whatever config.json says.
_GEMMA = {"norm": "rms_plus_one"}
FIXED: dict[str, dict[str, Any]] = {
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norm_placement": "both"},
    "gemma3_text": {**_GEMMA, "norm_placement": "both"},
    "olmo2": {"norm_placement": "post"},
    "starcoder2": {"norm": "layer", "norm_bias": True, "gated": False},
}
FIXED_ATTENTION: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "rms"},
    "gemma3_text": {"qk_norm": "rms_plus_one"},
    "olmo2": {"qk_norm": "rms_full"},
    "gpt_oss": {"sinks": True},
}
DROPOUTS = {"phi3": ("embd_pdrop", "resid_pdrop"), "starcoder2": ("embedding_dropout", "residual_dropout")}
CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma2",
    "gemma3_text": "Gemma3", "phi3": "Phi3", "olmo2": "Olmo2", "starcoder2": "Starcoder2", "smollm3": "SmolLM3",
}  # fmt: skip

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


# --- names -----------------------------------------------------------------------------------------------------------

_ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_GATED = {"feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"}
_PRE = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
_POST = {
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
_BOTH = {"attention_norm": "input_layernorm", "feed_forward_norm": "pre_feedforward_layernorm", **_POST}


def _names(modules: Mapping[str, str], layout: str = "huggingface", **other: Any) -> Names:
    return Names(
        ends=_ENDS, block="model.layers.{}.", attention="self_attn.", modules=modules, layout=layout,
        unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",), tied_head="lm_head.weight", **other,
    )  # fmt: skip


_PLAIN = _names({**_PRE, **_GATED})
_GEMMA_NAMES = _names({**_BOTH, **_GATED})
NAMES: dict[str, Names] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "gpt_oss"), _PLAIN),
    "gemma2": _GEMMA_NAMES,
    "gemma3_text": _GEMMA_NAMES,
    "olmo2": _names({**_POST, **_GATED}),
    "starcoder2": _names({**_PRE, "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}),
    "phi3": _names(
        {**_PRE, "feed_forward.down": "mlp.down_proj"},
        layout="huggingface.phi3",
        fused={"mlp.gate_up_proj": ("feed_forward.gate", "feed_forward.up")},
    ),
}

"""The families of a Hugging Face folder as tables: their settings, what each one's code takes for granted, their names.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23. DEFAULTS says what each family's code takes where
config.json is silent, and so which keys it understands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_weights.families.names import Names

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

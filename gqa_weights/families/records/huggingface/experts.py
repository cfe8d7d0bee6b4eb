"""Families with a mixture of experts, of which only the attention is read."""

from __future__ import annotations

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.layer_rules import GEMMA2_WINDOWS, QWEN_WINDOWS, all_if_used, where_sliding_window
from gqa_weights.families.records.huggingface.shared import COMMON, LLAMA_DEFAULTS, PRE_NORM_NAMES, QWEN2_DEFAULTS
from gqa_weights.families.rope_json import RopeDefaults

GPT_OSS = HuggingFaceFamily(
    name="gpt_oss",
    architecture="GptOss",
    tensors=PRE_NORM_NAMES,
    attention_only="num_local_experts",
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 128,
        "layer_types": None, "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
    attention={"sinks": True},
    windows=GEMMA2_WINDOWS,
    rope=RopeDefaults(theta=150_000.0),
)  # fmt: skip
MIXTRAL = HuggingFaceFamily(
    name="mixtral",
    architecture="Mixtral",
    tensors=PRE_NORM_NAMES,
    attention_only="num_local_experts",
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": None,
    },
    windows=where_sliding_window,
    rope=RopeDefaults(theta=1_000_000.0),
)  # fmt: skip
QWEN2_MOE = HuggingFaceFamily(
    name="qwen2_moe",
    architecture="Qwen2Moe",
    tensors=PRE_NORM_NAMES,
    attention_only="num_experts",
    defaults={**QWEN2_DEFAULTS, "num_key_value_heads": 16, "qkv_bias": True},
    keys={"attention_bias": "qkv_bias"},
    attention={"out_bias": False},
    windows=QWEN_WINDOWS,
)
QWEN3_MOE = HuggingFaceFamily(
    name="qwen3_moe",
    architecture="Qwen3Moe",
    tensors=PRE_NORM_NAMES,
    attention_only="num_experts",
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768, "sliding_window": 4096,
        "use_sliding_window": False,
    },
    attention={"qk_norm": "rms"},
    windows=all_if_used,
    ignored=frozenset({"max_window_layers"}),
)  # fmt: skip
GLM4_MOE = HuggingFaceFamily(
    name="glm4_moe",
    architecture="Glm4Moe",
    tensors=PRE_NORM_NAMES,
    attention_only="n_routed_experts",
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5, "use_qk_norm": False,
    },
    attention={"out_bias": False, "qk_norm": "rms"},
)  # fmt: skip
OLMOE = HuggingFaceFamily(
    name="olmoe",
    architecture="Olmoe",
    tensors=PRE_NORM_NAMES,
    attention_only="num_experts",
    defaults={**LLAMA_DEFAULTS, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    attention={"qk_norm": "rms_full"},
)
GRANITEMOE = HuggingFaceFamily(
    name="granitemoe",
    architecture="GraniteMoe",
    tensors=PRE_NORM_NAMES,
    attention_only="num_local_experts",
    defaults={**LLAMA_DEFAULTS, "attention_multiplier": 1.0},
)
MINIMAX_M2 = HuggingFaceFamily(
    name="minimax_m2",
    architecture="MiniMaxM2",
    tensors=PRE_NORM_NAMES,
    attention_only="num_local_experts",
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rotary_dim": None,
    },
    attention={"qk_norm": "rms_full"},
    rope=RopeDefaults(theta=5_000_000.0),
    only={"use_qk_norm": (True,), "qk_norm_type": ("per_layer",)},
    ignored=frozenset({"attn_type_list"}),
)  # fmt: skip

EXPERTS = (GPT_OSS, MIXTRAL, QWEN2_MOE, QWEN3_MOE, GLM4_MOE, OLMOE, GRANITEMOE, MINIMAX_M2)

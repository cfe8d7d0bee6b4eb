"""Families of which only the attention is read: their routers are no softmax, or they have linear attention too."""

from __future__ import annotations

from dataclasses import replace

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.layer_rules import full_attention_layers
from gqa_weights.families.records.huggingface.shared import (
    COMMON,
    LLAMA_DEFAULTS,
    MROPE,
    PRE_NORM_NAMES,
    PRE_NORMS,
    names,
    sizes,
)
from gqa_weights.families.rope_json import RopeDefaults

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

# Each fourth layer has attention; the others are gated delta networks, whose settings do not matter here. Norms are
# stored as w, and mean 1 + w.
QWEN3_NEXT = HuggingFaceFamily(
    name="qwen3_next",
    architecture="Qwen3Next",
    tensors=names(PRE_NORMS, layout="huggingface.gated"),
    attention_only="linear_attention",
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25, "layer_types": None, "full_attention_interval": 4,
    },
    attention={"qk_norm": "rms_plus_one", "output_gate": True},
    attends=full_attention_layers,
    only={"attn_output_gate": (True, None)},
    ignored=frozenset({
        "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
        "linear_num_value_heads", "mamba_ssm_dtype", "output_gate_type",
    }),
)  # fmt: skip
QWEN3_5 = replace(
    QWEN3_NEXT,
    name="qwen3_5_text",
    architecture="Qwen3_5",
    defaults={**QWEN3_NEXT.defaults, "num_key_value_heads": 4},
    sizes=sizes(248320, 4096, 12288, 32, 16),
    rope=RopeDefaults(unread=MROPE.unread, earlier_types=MROPE.earlier_types),
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe_text",
    architecture="Qwen3_5Moe",
    defaults=QWEN3_NEXT.defaults,
    sizes=sizes(248320, 2048, 0, 40, 16),
)

ATTENTION_ALONE = (GLM4_MOE, MINIMAX_M2, QWEN3_NEXT, QWEN3_5, QWEN3_5_MOE)

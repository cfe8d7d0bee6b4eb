"""Families with a mixture of experts, of which only the attention is read: their routers are no softmax."""

from __future__ import annotations

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.records.huggingface.shared import COMMON, LLAMA_DEFAULTS, PRE_NORM_NAMES
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

ATTENTION_ALONE = (GLM4_MOE, MINIMAX_M2)

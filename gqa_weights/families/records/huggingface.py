"""The families of a Hugging Face folder.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23. `defaults` says what each family's code takes
where config.json is silent, and so which keys it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gqa_weights.families.config_json import SIZES, HuggingFaceFamily
from gqa_weights.families.layer_rules import (
    GEMMA2_WINDOWS,
    GEMMA3_WINDOWS,
    QWEN_WINDOWS,
    SMOLLM3_WINDOWS,
    no_layer,
    no_rope_layers,
    where_sliding_window,
)
from gqa_weights.families.rope_json import RopeDefaults
from gqa_weights.families.tensors import TensorNames

# --- names of tensors ------------------------------------------------------------------------------------------------

ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
GATED = {"feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"}
PRE_NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
BOTH_NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "pre_feedforward_layernorm", **POST_NORMS}


def _names(modules: Mapping[str, str], layout: str = "huggingface", **other: Any) -> TensorNames:
    return TensorNames(
        ends=ENDS, block="model.layers.{}.", attention="self_attn.", modules=modules, layout=layout,
        unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",), tied_head="lm_head.weight", **other,
    )  # fmt: skip


PRE_NORM_NAMES = _names({**PRE_NORMS, **GATED})
BOTH_NORM_NAMES = _names({**BOTH_NORMS, **GATED})

# --- defaults that several families share ----------------------------------------------------------------------------

COMMON = {"attention_dropout": 0.0, "rope_parameters": None, "rope_scaling": None, "rope_theta": None}
LLAMA_DEFAULTS = {
    **COMMON, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
QWEN2_DEFAULTS = {
    **COMMON, "num_key_value_heads": 32, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096, "use_sliding_window": False,
    "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
GEMMA_DEFAULTS = {
    **COMMON, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "attention_bias": False,
}  # fmt: skip
GEMMA2_DEFAULTS = {
    **GEMMA_DEFAULTS, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": 30.0,
}  # fmt: skip


def _sizes(*sizes: int) -> dict[str, int]:
    return dict(zip(SIZES, sizes, strict=True))


# Of text alone, all three positions of a token are the same, and so is the rotation, however the pairs are shared out.
MROPE = RopeDefaults(
    theta=1_000_000.0, unread=("mrope_section", "mrope_interleaved"), earlier_types={"mrope": "default"}
)

# --- records ---------------------------------------------------------------------------------------------------------

LLAMA = HuggingFaceFamily(
    name="llama",
    architecture="Llama",
    tensors=PRE_NORM_NAMES,
    defaults={**LLAMA_DEFAULTS, "mlp_bias": False},
    sizes=_sizes(32000, 4096, 11008, 32, 32),
)
MISTRAL = HuggingFaceFamily(
    name="mistral",
    architecture="Mistral",
    tensors=PRE_NORM_NAMES,
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096,
    },
    sizes=_sizes(32000, 4096, 14336, 32, 32),
    windows=where_sliding_window,
    only={"attention_bias": (False, None)},
)  # fmt: skip
QWEN2 = HuggingFaceFamily(
    name="qwen2",
    architecture="Qwen2",
    tensors=PRE_NORM_NAMES,
    defaults=QWEN2_DEFAULTS,
    sizes=_sizes(151936, 4096, 22016, 32, 32),
    attention={"qkv_bias": True},
    windows=QWEN_WINDOWS,
)
QWEN2_VL = replace(
    QWEN2,
    name="qwen2_vl_text",
    origin="qwen2",
    defaults={**QWEN2_DEFAULTS, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_window_layers": 80},
    sizes=_sizes(152064, 8192, 29568, 80, 64),
    rope=MROPE,
)
QWEN2_5_VL = replace(QWEN2_VL, name="qwen2_5_vl_text")
QWEN3 = HuggingFaceFamily(
    name="qwen3",
    architecture="Qwen3",
    tensors=PRE_NORM_NAMES,
    defaults={**QWEN2_DEFAULTS, "head_dim": 128, "attention_bias": False},
    attention={"qk_norm": "rms"},
    windows=QWEN_WINDOWS,
)
QWEN3_VL = replace(
    QWEN3,
    name="qwen3_vl_text",
    origin="qwen3",
    defaults={**LLAMA_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 128000},
    sizes=_sizes(151936, 4096, 22016, 32, 32),
    windows=no_layer,
    rope=replace(MROPE, theta=500_000.0),
)
GEMMA = HuggingFaceFamily(
    name="gemma",
    architecture="Gemma",
    tensors=PRE_NORM_NAMES,
    defaults={**GEMMA_DEFAULTS, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"},
    model={"norm": "rms_plus_one"},
    scaled_embedding=True,
    activations={"gelu": "gelu_tanh"},  # what its first files say, and do not mean
    activation_beside="hidden_activation",
)
GEMMA2 = HuggingFaceFamily(
    name="gemma2",
    architecture="Gemma2",
    tensors=BOTH_NORM_NAMES,
    defaults={**GEMMA2_DEFAULTS, "attn_logit_softcapping": 50.0},
    keys={"hidden_act": "hidden_activation"},
    model={"norm": "rms_plus_one", "norm_placement": "both"},
    windows=GEMMA2_WINDOWS,
    scaled_embedding=True,
    activation_beside="hidden_act",
    repeats={"sliding_window_size": "sliding_window"},
)
GEMMA3 = HuggingFaceFamily(
    name="gemma3_text",
    architecture="Gemma3",
    tensors=BOTH_NORM_NAMES,
    defaults={
        **GEMMA2_DEFAULTS, "max_position_embeddings": 131072, "final_logit_softcapping": None,
        "rope_local_base_freq": None, "sliding_window_pattern": 6,
    },
    sizes=_sizes(262208, 2304, 9216, 26, 8),
    keys={"hidden_act": "hidden_activation"},
    attention={"qk_norm": "rms_plus_one"},
    model={"norm": "rms_plus_one", "norm_placement": "both"},
    windows=GEMMA3_WINDOWS,
    rope=RopeDefaults(theta=1_000_000.0, local_theta=10_000.0),
    scaled_embedding=True,
    activation_beside="hidden_act",
    only={"attn_logit_softcapping": (None,)},  # in its settings, but not in its model's code
)  # fmt: skip
PHI3 = HuggingFaceFamily(
    name="phi3",
    architecture="Phi3",
    tensors=_names(
        {**PRE_NORMS, "feed_forward.down": "mlp.down_proj"},
        layout="huggingface.phi3",
        fused={"mlp.gate_up_proj": ("feed_forward.gate", "feed_forward.up")},
    ),
    defaults={
        **COMMON, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "sliding_window": None, "partial_rotary_factor": 1.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    windows=where_sliding_window,
    rope=RopeDefaults(earlier_types={"su": "longrope", "yarn": "longrope"}),
    dropouts=("embd_pdrop", "resid_pdrop"),
    ignored=frozenset({"full_attn_mod", "interpolate_factor"}),  # Phi-4-mini's
    only={"attention_bias": (False, None)},
)  # fmt: skip
OLMO2 = HuggingFaceFamily(
    name="olmo2",
    architecture="Olmo2",
    tensors=_names({**POST_NORMS, **GATED}),
    defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    attention={"qk_norm": "rms_full"},
    model={"norm_placement": "post"},
)
STARCODER2 = HuggingFaceFamily(
    name="starcoder2",
    architecture="Starcoder2",
    tensors=_names({**PRE_NORMS, "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}),
    defaults={
        **COMMON, "num_key_value_heads": 2, "head_dim": None, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "tie_word_embeddings": True, "sliding_window": None,
        "use_bias": True, "embedding_dropout": 0.0, "residual_dropout": 0.0,
    },
    keys={"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": "use_bias"},
    model={"norm": "layer", "norm_bias": True, "gated": False},
    windows=where_sliding_window,
    dropouts=("embedding_dropout", "residual_dropout"),
)  # fmt: skip
SMOLLM3 = HuggingFaceFamily(
    name="smollm3",
    architecture="SmolLM3",
    tensors=PRE_NORM_NAMES,
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "mlp_bias": False, "sliding_window": None, "use_sliding_window": False, "layer_types": None,
        "no_rope_layers": None, "no_rope_layer_interval": 4,
    },
    windows=SMOLLM3_WINDOWS,
    rotates=no_rope_layers,
    rope=RopeDefaults(theta=2_000_000.0),
    ignored=frozenset({"max_window_layers"}),
)  # fmt: skip
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
    ignored=frozenset({
        "experts_per_token", "initial_context_length", "num_experts_per_tok", "num_local_experts",
        "output_router_logits", "quantization_config", "router_aux_loss_coef", "swiglu_alpha", "swiglu_limit",
    }),
)  # fmt: skip

HUGGINGFACE = (
    LLAMA, MISTRAL, QWEN2, QWEN2_VL, QWEN2_5_VL, QWEN3, QWEN3_VL, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, STARCODER2,
    SMOLLM3, GPT_OSS,
)  # fmt: skip

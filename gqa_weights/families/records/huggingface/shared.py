"""What records share: names of tensors, and settings that several families take where config.json is silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_weights.families.config_json import SIZES
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


def names(modules: Mapping[str, str], layout: str = "huggingface", **other: Any) -> TensorNames:
    return TensorNames(
        ends=ENDS, block="model.layers.{}.", attention="self_attn.", modules=modules, layout=layout,
        unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",), tied_head="lm_head.weight", **other,
    )  # fmt: skip


PRE_NORM_NAMES = names({**PRE_NORMS, **GATED})
BOTH_NORM_NAMES = names({**BOTH_NORMS, **GATED})

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


def sizes(*sizes: int) -> dict[str, int]:
    return dict(zip(SIZES, sizes, strict=True))


# Of text alone, all three positions of a token are the same, and so is the rotation, however the pairs are shared out.
MROPE = RopeDefaults(
    theta=1_000_000.0, unread=("mrope_section", "mrope_interleaved"), earlier_types={"mrope": "default"}
)

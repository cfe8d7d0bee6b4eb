"""Families with a mixture of experts, whole: a softmax router, and gated feed-forwards as experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.expert_tensors import MAPS, ExpertTensors, Stack
from gqa_weights.families.experts_json import ExpertKeys
from gqa_weights.families.layer_rules import GEMMA2_WINDOWS, QWEN2_MOE_WINDOWS, all_if_used, where_sliding_window
from gqa_weights.families.records.huggingface.shared import (
    COMMON,
    GATED,
    LLAMA_DEFAULTS,
    PRE_NORMS,
    QWEN2_DEFAULTS,
    names,
)
from gqa_weights.families.rope_json import RopeDefaults

# --- names of tensors ------------------------------------------------------------------------------------------------

GATE_UP, DOWN = Stack(maps=("gate", "up")), Stack(maps=("down",))


def _stacked(router: str, gate_up: str, down: str) -> ExpertTensors:
    return ExpertTensors(router=router, stacks={gate_up: GATE_UP, down: DOWN})


# What transformers 5 has in memory, and writes where it is told not to keep a family's own names.
IN_MEMORY = _stacked("mlp.gate", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
MIXTRAL_EXPERTS = (
    ExpertTensors(
        router="block_sparse_moe.gate",
        each={name: f"block_sparse_moe.experts.{{}}.{w}" for name, w in zip(MAPS, ("w1", "w3", "w2"), strict=True)},
    ),
    IN_MEMORY,
)
QWEN_EXPERTS = (
    ExpertTensors(router="mlp.gate", each={name: f"mlp.experts.{{}}.{name}_proj" for name in MAPS}),
    IN_MEMORY,
)
SHARED = {
    **{f"feed_forward.shared.{name}": f"mlp.shared_expert.{name}_proj" for name in MAPS},
    "feed_forward.shared_gate": "mlp.shared_expert_gate",
}
GRANITE = "block_sparse_moe"
GRANITE_EXPERTS = (
    _stacked(
        "block_sparse_moe.router.layer", "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
    ),
    _stacked("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
)


def _gpt_oss(ends: str, *, transposed: bool) -> ExpertTensors:
    """The rows of gate and up alternate. Numbers have the axes (X, in, out), and blocks of MXFP4 (X, out, in)."""
    of_gate_up: dict[str, Any] = {"maps": ("gate", "up"), "interleaved": True}
    return ExpertTensors(
        router="mlp.router",
        stacks={
            f"mlp.experts.gate_up_proj{ends}": Stack(**of_gate_up, transposed=transposed),
            f"mlp.experts.down_proj{ends}": Stack(maps=("down",), transposed=transposed),
            "mlp.experts.gate_up_proj_bias": Stack(**of_gate_up, kind="bias"),
            "mlp.experts.down_proj_bias": Stack(maps=("down",), kind="bias"),
        },
    )


GPT_OSS_EXPERTS = (_gpt_oss("", transposed=True), _gpt_oss("_blocks", transposed=False))

# --- families --------------------------------------------------------------------------------------------------------

CHOSEN: Mapping[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 8}
QWEN_MOE: Mapping[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}

MIXTRAL = HuggingFaceFamily(
    name="mixtral",
    architecture="Mixtral",
    tensors=names(PRE_NORMS, experts=MIXTRAL_EXPERTS),
    defaults={
        **COMMON, **CHOSEN, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": None,
    },
    windows=where_sliding_window,
    rope=RopeDefaults(theta=1_000_000.0),
    experts=ExpertKeys(count="num_local_experts", alias="num_experts"),
)  # fmt: skip
QWEN2_MOE = HuggingFaceFamily(
    name="qwen2_moe",
    architecture="Qwen2Moe",
    tensors=names({**PRE_NORMS, **GATED, **SHARED}, experts=QWEN_EXPERTS),
    defaults={
        **QWEN2_DEFAULTS, **QWEN_MOE, "num_key_value_heads": 16, "qkv_bias": True, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
    },
    keys={"attention_bias": "qkv_bias"},
    attention={"out_bias": False},
    windows=QWEN2_MOE_WINDOWS,
    experts=ExpertKeys(
        count="num_experts", size="moe_intermediate_size", normalised=None, shared="shared_expert_intermediate_size",
        fixed={"shared_gate": True},
    ),
)  # fmt: skip
QWEN3_MOE = HuggingFaceFamily(
    name="qwen3_moe",
    architecture="Qwen3Moe",
    tensors=names({**PRE_NORMS, **GATED}, experts=QWEN_EXPERTS),
    defaults={
        **LLAMA_DEFAULTS, **QWEN_MOE, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "sliding_window": 4096, "use_sliding_window": False, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    attention={"qk_norm": "rms"},
    windows=all_if_used,
    ignored=frozenset({"max_window_layers"}),
    experts=ExpertKeys(
        count="num_experts", alias="num_local_experts", size="moe_intermediate_size", normalised=None
    ),
)  # fmt: skip
OLMOE = HuggingFaceFamily(
    name="olmoe",
    architecture="Olmoe",
    tensors=names(PRE_NORMS, experts=QWEN_EXPERTS),
    defaults={
        **LLAMA_DEFAULTS, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": False,
    },
    attention={"qk_norm": "rms_full"},
    experts=ExpertKeys(count="num_experts", alias="num_local_experts", normalised=None),
)  # fmt: skip
GRANITEMOE = HuggingFaceFamily(
    name="granitemoe",
    architecture="GraniteMoe",
    tensors=names(PRE_NORMS, experts=GRANITE_EXPERTS),
    defaults={
        **LLAMA_DEFAULTS, **CHOSEN, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
        "attention_multiplier": 1.0, "logits_scaling": 1.0,
    },
    experts=ExpertKeys(count="num_local_experts"),
)  # fmt: skip
GRANITEMOESHARED = replace(
    GRANITEMOE,
    name="granitemoeshared",
    architecture="GraniteMoeShared",
    tensors=names(
        {**PRE_NORMS, "feed_forward.shared.down": "shared_mlp.output_linear"},
        fused={"shared_mlp.input_linear": ("feed_forward.shared.gate", "feed_forward.shared.up")},
        experts=GRANITE_EXPERTS,
    ),
    defaults={**GRANITEMOE.defaults, "shared_intermediate_size": 0},
    experts=ExpertKeys(count="num_local_experts", shared="shared_intermediate_size"),
)
GPT_OSS = HuggingFaceFamily(
    name="gpt_oss",
    architecture="GptOss",
    tensors=names(PRE_NORMS, experts=GPT_OSS_EXPERTS),
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 128,
        "layer_types": None, "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096,
        },
        "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0, "swiglu_alpha": 1.702,
    },
    attention={"sinks": True},
    windows=GEMMA2_WINDOWS,
    rope=RopeDefaults(theta=150_000.0),
    # the number of positions before yarn, which the dictionary has too
    ignored=frozenset({"initial_context_length"}),
    repeats={"experts_per_token": "num_experts_per_tok"},
    experts=ExpertKeys(count="num_local_experts", alias="num_experts", fixed={"bias": True}),
)  # fmt: skip

EXPERTS = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GRANITEMOE, GRANITEMOESHARED, GPT_OSS)

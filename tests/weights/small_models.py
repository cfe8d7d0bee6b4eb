"""Small random models of transformers, one for each case of a family, saved as its users have them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families import FAMILIES
from gqa_weights.families.config_json import SIZES as SIZE_KEYS
from gqa_weights.families.config_json import HuggingFaceFamily

HUGGINGFACE = {
    name: family for name, family in FAMILIES.items() if isinstance(family, HuggingFaceFamily) and not family.origin
}
# 13 tokens: more than every window below, and than longrope's original context.
PROMPTS = np.random.default_rng(0).integers(3, 61, size=(2, 13))
# What two float64 models may differ by: the softmax and the RoPE tables of transformers are float32 in both.
SINGLE = 16 * float(np.finfo(np.float32).eps)

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
PHI3_ROPE = {
    "rope_type": "longrope", "short_factor": [1.1, 1.3], "long_factor": [2.0, 7.0], "partial_rotary_factor": 0.4,
    "original_max_position_embeddings": 8,
}  # fmt: skip
SLIDING_FIRST = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]

LINEAR = {
    "linear_conv_kernel_dim": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}  # fmt: skip
LINEAR_BETWEEN = ["linear_attention", "full_attention", "full_attention", "linear_attention", "full_attention"]

# case -> family, settings of its config. Head sizes are not hidden / heads; K = 2, N / K = 3; windows are short.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 10, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama plain": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    "mistral": ("mistral", {"head_dim": 10, "sliding_window": 5, "hidden_act": "gelu"}),
    "mistral whole": ("mistral", {"head_dim": 10, "sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "qwen3 sliding": (
        "qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "layer_types": SLIDING_FIRST},
    ),
    "gemma": ("gemma", {"head_dim": 10, "hidden_act": "gelu"}),
    "gemma2": (
        "gemma2",
        {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "attn_logit_softcapping": 0.7,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "num_hidden_layers": 7},
    ),
    "gemma3 scaled": (
        "gemma3_text",
        {"head_dim": 10, "sliding_window": 5, "layer_types": SLIDING_FIRST, "query_pre_attn_scalar": 10,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
         }},
    ),
    "phi3": (
        "phi3",
        {"hidden_size": 60, "rope_parameters": PHI3_ROPE, "original_max_position_embeddings": 8, "sliding_window": 5},
    ),
    "phi3 plain": ("phi3", {"num_key_value_heads": 3}),
    "olmo2": ("olmo2", {"attention_bias": True, "rms_norm_eps": 1e-3}),
    "starcoder2": ("starcoder2", {"sliding_window": 5, "norm_epsilon": 1e-3}),
    "starcoder2 no bias": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "smollm3": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "smollm3 sliding": (
        "smollm3",
        {"no_rope_layers": [1, 0, 0, 1, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    "ministral": ("ministral", {"head_dim": 10, "sliding_window": 5, "layer_types": SLIDING_FIRST}),
    "ministral all sliding": ("ministral", {"head_dim": 10, "sliding_window": 5}),
    "olmo3": (
        "olmo3",
        {"attention_bias": True, "rms_norm_eps": 1e-3, "sliding_window": 5, "rope_parameters": {
            "full_attention": YARN | {"rope_theta": 70.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        }},
    ),
    "exaone4": ("exaone4", {"head_dim": 10, "sliding_window": 5, "layer_types": SLIDING_FIRST}),
    "exaone4 whole": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 5}),
    "seed_oss": (
        "seed_oss",
        {"head_dim": 10, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
         "attention_dropout": 0.0},
    ),
    "seed_oss out": ("seed_oss", {"head_dim": 10, "attention_bias": False, "attention_out_bias": True}),
    "ministral3": (
        "ministral3",
        {"head_dim": 10, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 4,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.7,
        }},
    ),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "hunyuan stretched": (
        "hunyuan_v1_dense",
        {"head_dim": 10, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "alpha": 20.0, "factor": 1.0}},
    ),
    "arcee": ("arcee", {"head_dim": 10, "attention_bias": True, "mlp_bias": True}),
    "granite": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
         "attention_multiplier": 0.3, "logits_scaling": 7.0},
    ),
    "glm": ("glm", {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "glm4": ("glm4", {"head_dim": 8, "rope_parameters": {"rope_theta": 70.0, "partial_rotary_factor": 0.75}}),
    "ernie4_5": ("ernie4_5", {"head_dim": 10, "use_bias": True}),
    "helium": ("helium", {"head_dim": 4, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "stablelm": ("stablelm", {"hidden_size": 48, "use_qkv_bias": True, "layer_norm_eps": 1e-3}),
    "stablelm parallel": ("stablelm", {"hidden_size": 48, "use_parallel_residual": True}),
    "cohere2": ("cohere2", {"sliding_window": 5, "attention_bias": True, "logit_scale": 0.3, "layer_norm_eps": 1e-3}),
    "cohere2 listed": (
        "cohere2", {"sliding_window": 5, "layer_types": SLIDING_FIRST, "tie_word_embeddings": False},
    ),
    "phi": ("phi", {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-3}),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": ..., "hidden_size": 48, "rotary_pct": 0.25}),
    "gpt_neox sequential": (
        "gpt_neox",
        {"num_key_value_heads": ..., "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0,
         "rotary_emb_base": 50},
    ),
    "falcon": (
        "falcon",
        {"num_key_value_heads": ..., "intermediate_size": ..., "num_kv_heads": 2, "new_decoder_architecture": True,
         "bias": True, "layer_norm_epsilon": 1e-3, "ffn_hidden_size": 37},
    ),
    "falcon one norm": (
        "falcon",
        {"num_key_value_heads": ..., "intermediate_size": ..., "num_kv_heads": 3, "new_decoder_architecture": True,
         "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    ),
    "nemotron": ("nemotron", {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3}),
    "mixtral": ("mixtral", {"head_dim": 10, "sliding_window": 5, "num_local_experts": 5, "hidden_act": "gelu"}),
    "mixtral of one": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True}),
    "qwen2_moe": (
        "qwen2_moe",
        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
         "shared_expert_intermediate_size": 11, "use_sliding_window": True, "sliding_window": 5,
         "max_window_layers": 3},
    ),
    "qwen2_moe normalised": (
        "qwen2_moe",
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "norm_topk_prob": True,
         "shared_expert_intermediate_size": 11, "decoder_sparse_step": 2, "qkv_bias": False},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 10, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "attention_bias": True,
         "use_sliding_window": True, "sliding_window": 5},
    ),
    "qwen3_moe with dense layers": (
        "qwen3_moe",
        {"head_dim": 10, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 8,
         "norm_topk_prob": True, "mlp_only_layers": [1, 3]},
    ),
    "glm4_moe": (
        "glm4_moe",
        {"head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
         "use_qk_norm": True, "attention_bias": True},
    ),
    "glm4_moe without norms": (
        "glm4_moe",
        {"head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "olmoe": ("olmoe", {"num_experts": 3, "num_experts_per_tok": 2, "rms_norm_eps": 1e-3}),
    "olmoe normalised": ("olmoe", {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "granitemoe": (
        "granitemoe",
        {"num_local_experts": 3, "attention_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 7.0,
         "residual_multiplier": 0.22},
    ),
    "granitemoeshared": (
        "granitemoeshared", {"num_local_experts": 5, "shared_intermediate_size": 11, "attention_multiplier": 0.3},
    ),
    "granitemoeshared without": ("granitemoeshared", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "minimax_m2": ("minimax_m2", {"head_dim": 10, "rotary_dim": 6, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "gpt_oss": ("gpt_oss", {"head_dim": 10, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5}),
    "gpt_oss clamped": (
        "gpt_oss",
        {"head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 3, "swiglu_limit": 0.6, "swiglu_alpha": 0.9},
    ),
    "qwen3_next": (
        "qwen3_next",
        {**LINEAR, "head_dim": 16, "num_hidden_layers": 8, "num_experts": 3, "num_experts_per_tok": 2,
         "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "attention_bias": True},
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {**LINEAR, "head_dim": 8, "layer_types": LINEAR_BETWEEN, "rope_parameters": {
            "rope_type": "default", "rope_theta": 70.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {**LINEAR, "head_dim": 8, "layer_types": LINEAR_BETWEEN, "num_experts": 3, "num_experts_per_tok": 2,
         "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    ),
}  # fmt: skip
WHOLE = [case for case, (family, _) in CASES.items() if not HUGGINGFACE[family].attention_only]


def transformers_config(family: str, **settings: Any) -> Any:
    import transformers

    architecture = HUGGINGFACE[family].architecture
    name = f"{architecture}TextConfig" if family.endswith("_text") and "vl" not in family else f"{architecture}Config"
    config = getattr(transformers, name)(**settings, attn_implementation="eager")
    config._experts_implementation = "eager"  # gpt_oss's fast one has no float64
    return config


def least_settings(family: str) -> dict[str, Any]:
    """SIZES by the family's own keys, and what it cannot do without."""
    record = HUGGINGFACE[family]
    own = {record.keys.get(key, key): value for key, value in SIZES.items()}
    beside = {key for key in own if key.endswith("token_id")}
    read = {key: value for key, value in own.items() if key in record.defaults or key in SIZE_KEYS or key in beside}
    wide = {"hidden_size": 48} if family in ("gpt_neox", "stablelm") else {}  # a quarter of whose heads rotates
    return read | record.requires | wide


@cache
def saved(case: str, folder: Path) -> tuple[Any, Path]:
    """A model with random weights, none of them 0 or 1 or equal in pairs, and the folder it was saved to."""
    import torch
    import transformers

    family, settings = CASES[case]
    torch.manual_seed(len(case))
    given = {key: value for key, value in (SIZES | settings).items() if value is not ...}
    architecture = getattr(transformers, f"{HUGGINGFACE[family].architecture}ForCausalLM")
    model = architecture(transformers_config(family, **given))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.4)
    path = folder / case.replace(" ", "_")
    model.eval().save_pretrained(path)
    return model, path


@dataclass(frozen=True)
class Recorded:
    """What transformers computes in float64: each attention layer's input and output, and the logits."""

    layers: list[tuple[np.ndarray, np.ndarray]]
    logits: np.ndarray


@cache
def recorded(case: str, folder: Path) -> Recorded:
    import torch

    double, layers = copy.deepcopy(saved(case, folder)[0]).double(), []

    def record(_: Any, positional: Any, keywords: Any, result: Any) -> None:
        hidden = keywords["hidden_states"] if "hidden_states" in keywords else positional[0]
        layers.append((hidden.numpy(), result[0].numpy()))

    base = getattr(double, double.base_model_prefix)
    for layer in base.h if hasattr(base, "h") else base.layers:
        modules = dict(layer.named_children())
        attention = [modules[name] for name in ("self_attn", "attention", "self_attention") if name in modules]
        for module in attention:  # none in a layer of linear attention
            module.register_forward_hook(record, with_kwargs=True)
    with torch.no_grad():
        logits = double(input_ids=torch.from_numpy(PROMPTS), use_cache=False).logits
    return Recorded(layers, logits.numpy())


def stand_in(settings: dict[str, Any], tensors: dict[str, Any] | None = None) -> Any:
    """A checkpoint that has these settings."""

    class Small(dict):
        def info(self, name: str) -> TensorInfo:
            return TensorInfo(self[name].shape, self[name].dtype.name)

    checkpoint = Small(tensors or {})
    for name, value in {"settings": settings, "manifest": {}, "format": "safetensors", "path": Path("here")}.items():
        setattr(checkpoint, name, value)
    return checkpoint

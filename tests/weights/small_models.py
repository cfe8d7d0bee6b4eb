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
    "gpt_oss": ("gpt_oss", {"head_dim": 10, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5}),
}  # fmt: skip
WHOLE = [case for case, (family, _) in CASES.items() if not HUGGINGFACE[family].attention_only]


def transformers_config(family: str, **settings: Any) -> Any:
    import transformers

    architecture = HUGGINGFACE[family].architecture
    name = "Gemma3TextConfig" if family == "gemma3_text" else f"{architecture}Config"
    config = getattr(transformers, name)(**settings, attn_implementation="eager")
    config._experts_implementation = "eager"  # gpt_oss's fast one has no float64
    return config


@cache
def saved(case: str, folder: Path) -> tuple[Any, Path]:
    """A model with random weights, none of them 0 or 1 or equal in pairs, and the folder it was saved to."""
    import torch
    import transformers

    family, settings = CASES[case]
    torch.manual_seed(len(case))
    model = getattr(transformers, f"{HUGGINGFACE[family].architecture}ForCausalLM")(
        transformers_config(family, **SIZES | settings)
    )
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

    def record(_: Any, __: Any, keywords: Any, result: Any) -> None:
        layers.append((keywords["hidden_states"].numpy(), result[0].numpy()))

    for layer in double.model.layers:
        layer.self_attn.register_forward_hook(record, with_kwargs=True)
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

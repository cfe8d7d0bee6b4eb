"""Layouts under test: what each can express, a config with all of it, and the public converters' own permutations."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from gqa_spec import AttentionConfig, RopeConfig

HALF, INTERLEAVED = RopeConfig(), RopeConfig(pairing="interleaved")
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
EVERYTHING: dict[str, Any] = {
    "v_head_dim": 5,
    "kv_dim": 13,
    "qkv_bias": True,
    "out_bias": True,
    "sinks": True,
    "qk_norm": "rms",
}
GATED = {"output_gate": True}
# What the implementations have, as their documentation says; sizes left out are derived from the others.
CAN: dict[str, dict[str, Any]] = {
    "canonical": EVERYTHING | GATED,
    "huggingface": EVERYTHING | GATED,
    "huggingface.interleaved": EVERYTHING | GATED,
    "huggingface.gated": {"kv_dim": 13, "qkv_bias": True, "out_bias": True, "qk_norm": "rms_plus_one", **GATED},
    "huggingface.hunyuan": {"qkv_bias": True, "out_bias": True, "qk_norm": "rms"},
    "huggingface.phi": {"qkv_bias": True, "out_bias": True},
    "huggingface.phi3": {},
    "meta.llama": {},
    "gguf.llama": EVERYTHING,
    "gguf.qwen2": EVERYTHING,
    "gguf.gemma3": EVERYTHING,
    "torch.nn.MultiheadAttention": {"qkv_bias": True, "out_bias": True},
    "flax.nnx.MultiHeadAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True},
    "flax.linen.MultiHeadDotProductAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True},
    "keras.layers.GroupQueryAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True, **GATED},
    "gemma": {"qk_norm": "rms_plus_one"},
    "gpt_neox": {"qkv_bias": True, "out_bias": True},
    "megatron": {"qkv_bias": True, "out_bias": True, "qk_norm": "rms"},
    "litgpt": {"qkv_bias": True, "out_bias": True, "qk_norm": "rms"},
    "torchtune": {"qkv_bias": True, "out_bias": True},
    "torchtune.qwen2": {"qkv_bias": True, "out_bias": True},
    "x-transformers": {"v_head_dim": 5, "kv_dim": 13, "sinks": True},
}
MULTI_HEAD = ("torch.nn.MultiheadAttention", "flax.linen.MultiHeadDotProductAttention")
HEADS_FILL_WIDTH = ("torch.nn.MultiheadAttention", "gpt_neox")


def config_for(layout: str, N: int, K: int, H: int, **further: Any) -> AttentionConfig:
    """A config with all that the layout can express; the width is 11 where it is free."""
    K = N if layout in MULTI_HEAD else K
    width = N * H if layout in HEADS_FILL_WIDTH else 11
    given = {"embed_dim": width, "num_heads": N, "num_kv_heads": K, "head_dim": H}
    return AttentionConfig(**{**given, **CAN[layout], **further})


def to_half_as_hugging_face(w: np.ndarray, n_heads: int) -> np.ndarray:
    """`permute` of transformers' convert_llama_weights_to_hf.py: Meta's rows -> Hugging Face's."""
    dim1, dim2 = w.shape
    return w.reshape(n_heads, dim1 // n_heads // 2, 2, dim2).swapaxes(1, 2).reshape(dim1, dim2)


def to_interleaved_as_llama_cpp(weights: np.ndarray, n_head: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py, given K heads for keys: Hugging Face's rows -> GGUF's."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )

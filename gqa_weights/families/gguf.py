"""The families of a GGUF file: key-value fields and tensors -> ModelConfig, and where the tensors stand. Read only.

Source: llama.cpp's `convert_hf_to_gguf.py` and `src/llama-model.cpp`. A GGUF leaves some settings to the reader's code:
whether there are biases and an output matrix is seen from the tensors; Gemma 3's pattern of windows, the base of its
windowed layers and the scale of its 27B are constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gqa_spec.config import AttentionConfig, LinearScaling, LongropeScaling, RopeConfig, RopeScaling, YarnScaling
from gqa_spec.model_config import ModelConfig
from gqa_weights.families.lazy import Source
from gqa_weights.families.names import Names
from gqa_weights.families.settings import MOST_LAYERS, Settings

FILE = "GGUF"
FREQUENCIES = "rope_freqs.weight"  # Llama 3's scaling, as one divisor for each frequency
GEMMA3_PATTERN, GEMMA3_LOCAL_THETA, GEMMA3_27B_LAYERS = 6, 10_000.0, 62
NOT_OF_THE_MODEL = ("GGUF.", "general.", "tokenizer.", "quantize.", "split.")
IGNORED = ("rope.scaling.finetuned", "vocab_size")
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"theta": 10_000.0},
    "qwen2": {"theta": 10_000.0},
    "gemma3": {"theta": 1_000_000.0},
}
FIXED: dict[str, dict[str, Any]] = {
    "gemma3": {"norm": "rms_plus_one", "norm_placement": "both", "activation": "gelu_tanh"},
}


def read_config(family: str, values: Mapping[str, Any], tensors: Source) -> ModelConfig:
    """family: "gguf.llama", ... Raises ValueError that names each field that is unknown or unsupported."""
    arch = family.removeprefix("gguf.")
    s = _settings(family, arch, values)
    width, layers = s.integer("embedding_length"), s.integer("block_count", most=MOST_LAYERS)
    head_dim = _head_dim(s, width)
    eps = _decimal(s.number("attention.layer_norm_rms_epsilon"))
    shared = {
        "embed_dim": width, "num_heads": s.integer("attention.head_count"), "head_dim": head_dim, "causal": True,
        "num_kv_heads": s.integer("attention.head_count_kv"),
        "qkv_bias": "blk.0.attn_q.bias" in tensors, "out_bias": "blk.0.attn_output.bias" in tensors,
    }  # fmt: skip
    attention = _gemma3(s, shared, eps, layers) if arch == "gemma3" else _uniform(s, shared, layers, tensors)
    config = ModelConfig(
        attention=attention,
        feed_forward_size=s.integer("feed_forward_length"),
        vocab_size=_rows(tensors, "token_embd.weight"),
        norm_eps=eps,
        tied="output.weight" not in tensors,
        embedding_scale=width**0.5 if arch == "gemma3" else 1.0,
        logit_softcap=s.number("final_logit_softcapping", optional=True),
        max_length=s.integer("context_length"),
        **FIXED.get(arch, {}),
    )
    s.finish(IGNORED)
    return config


def _settings(family: str, arch: str, values: Mapping[str, Any]) -> Settings:
    inside = {}
    for key, value in values.items():
        if key.startswith(f"{arch}."):
            inside[key.removeprefix(f"{arch}.")] = value
        elif not key.startswith(NOT_OF_THE_MODEL):
            inside[key] = value  # finish() names it
    if values.get("split.count", 1) > 1:
        raise ValueError(f"{FILE}: split.count {values['split.count']!r} of family {family} is not supported")
    optional = dict.fromkeys(
        ("attention.key_length", "attention.value_length", "rope.dimension_count", "final_logit_softcapping",
         "rope.scaling.factor", "rope.scaling.original_context_length")
    )  # fmt: skip
    defaults = {**optional, "rope.freq_base": DEFAULTS[arch]["theta"], "rope.scaling.type": "none"}
    if "attention.head_count" in inside:
        defaults["attention.head_count_kv"] = inside["attention.head_count"]
    return Settings(inside, FILE, family, defaults)


def _head_dim(s: Settings, width: int) -> int:
    head_dim: int = s.integer("attention.key_length", optional=True) or width // s.integer("attention.head_count")
    for key in ("attention.value_length", "rope.dimension_count"):
        if s.integer(key, optional=True) not in (None, head_dim):
            raise s.unsupported(key, f" beside heads of {head_dim}")
    return head_dim


def _uniform(s: Settings, shared: dict[str, Any], layers: int, tensors: Source) -> tuple[AttentionConfig, ...]:
    rope = RopeConfig(theta=_decimal(s.number("rope.freq_base")), scaling=_scaling(s, tensors))
    return (AttentionConfig(**shared, rope=rope),) * layers


def _gemma3(s: Settings, shared: dict[str, Any], eps: float, layers: int) -> tuple[AttentionConfig, ...]:
    window = s.integer("attention.sliding_window")
    whole = RopeConfig(theta=_decimal(s.number("rope.freq_base")), scaling=_scaling(s, {}))
    local = RopeConfig(theta=GEMMA3_LOCAL_THETA)
    per_head = shared["embed_dim"] // shared["num_heads"]
    scale = per_head**-0.5 if layers == GEMMA3_27B_LAYERS else None
    return tuple(
        AttentionConfig(
            **shared, qk_norm="rms_plus_one", qk_norm_eps=eps, scale=scale,
            window=window if slides else None, rope=local if slides else whole,
        )
        for slides in ((layer + 1) % GEMMA3_PATTERN != 0 for layer in range(layers))
    )  # fmt: skip


def _scaling(s: Settings, tensors: Any) -> RopeScaling | None:
    kind = s.get("rope.scaling.type")
    factor = s.number("rope.scaling.factor", optional=True)
    original = s.integer("rope.scaling.original_context_length", optional=True)
    if FREQUENCIES in tensors:
        return _divisors(s, tensors, kind)
    if kind == "linear" and factor is not None:
        return LinearScaling(factor=factor)
    if kind == "yarn" and factor is not None and original is not None:
        return YarnScaling(factor=factor, original_max_position_embeddings=original)
    if kind != "none":
        raise s.unsupported("rope.scaling.type")
    return None


def _divisors(s: Settings, tensors: Source, kind: Any) -> LongropeScaling:
    if kind != "none":
        raise s.unsupported("rope.scaling.type", f" beside {FREQUENCIES}")
    divisors = tuple(float(value) for value in np.asarray(tensors[FREQUENCIES]).ravel())
    return LongropeScaling(
        short_factor=divisors, long_factor=divisors, original_max_position_embeddings=s.integer("context_length"),
        factor=1.0, attention_factor=1.0,
    )  # fmt: skip


def _rows(tensors: Source, name: str) -> int:
    if name not in tensors:
        raise ValueError(f"{FILE}: missing {name}")
    return tensors.info(name).shape[0]


def _decimal(value: float) -> float:
    """A GGUF holds float32: 1e-5 that went through it, not 9.99999974e-06."""
    return float(str(np.float32(value)))


_GATED = {"feed_forward.gate": "ffn_gate", "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down"}
_PRE = {"attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm"}
_POST = {"attention_post_norm": "post_attention_norm", "feed_forward_post_norm": "post_ffw_norm"}


def _names(modules: Mapping[str, str], layout: str, **other: Any) -> Names:
    return Names(
        ends={"embed": "token_embd", "norm": "output_norm", "head": "output"}, block="blk.{}.", attention="",
        modules={**_GATED, **modules}, layout=layout, unused=(r"rope_freqs\.weight",), **other,
    )  # fmt: skip


NAMES = {
    "gguf.llama": _names(_PRE, "gguf.llama"),
    "gguf.qwen2": _names(_PRE, "gguf.qwen2"),
    "gguf.gemma3": _names({**_PRE, **_POST}, "gguf.gemma3", one_plus_norms=True),
}

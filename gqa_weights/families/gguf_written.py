"""ModelConfig -> the key-value fields of a GGUF, and what llama.cpp's converter computes from the settings.

The caller reads the fields back to see what they do not say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig
from gqa_spec.rope import LinearScaling, Llama3Scaling, LongropeScaling, YarnScaling

Fields = dict[str, Any]


def written_fields(architecture: str, config: ModelConfig, *, windows: bool, epsilon: str) -> Fields:
    """The fields by their whole names; every float as the float32 that the file holds. windows: whether there is one
    for them. epsilon: that of the norms.
    """
    if config.max_length is None:
        raise ValueError(
            "max_length: a GGUF says how long a text may be (context_length), got None: "
            "port to huggingface first and add max_position_embeddings to its config.json"
        )
    first = config.attention[0]
    window = next((layer.window for layer in config.attention if layer.window is not None), None)
    table: Fields = {
        "block_count": config.num_layers,
        "context_length": config.max_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.feed_forward_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": first.num_heads,
        "attention.head_count_kv": first.num_kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.v_head_dim,
        epsilon: float(config.norm_eps),
        "attn_logit_softcapping": first.softcap,
        "attention.sliding_window": window if windows else None,
        "final_logit_softcapping": config.logit_softcap,
        **_rope(next((a for a in config.attention if a.window is None), first)),
    }
    return {f"{architecture}.{key}": _single(value) for key, value in table.items() if value is not None}


def _rope(layer: AttentionConfig) -> Fields:
    if layer.rope is None:
        return {}
    fields: Fields = {"rope.dimension_count": layer.rotary_dim, "rope.freq_base": float(layer.rope.theta)}
    match layer.rope.scaling:
        case LinearScaling(factor=factor):
            fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling(factor=factor, original_max_position_embeddings=original):
            fields |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(factor),
                "rope.scaling.original_context_length": original,
            }
    return fields


def _single(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def divisors(layer: AttentionConfig) -> tuple[float, ...] | None:
    """Of each frequency, in float32: Llama 3's scaling as the converter stores it. None where no tensor is needed."""
    if layer.rope is None:
        return None
    match layer.rope.scaling:
        case Llama3Scaling() as scaling:
            exponents = np.arange(0, layer.rotary_dim, 2) / layer.rotary_dim
            turns = scaling.original_max_position_embeddings * layer.rope.theta**-exponents / (2 * np.pi)
            kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            kept = np.clip(kept, 0, 1)
            return _as_float32(1 / ((1 - kept) / scaling.factor + kept))
        case LongropeScaling(short_factor=short, long_factor=long, attention_factor=1.0) if short == long:
            return _as_float32(short)
    return None


def _as_float32(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in np.asarray(values, np.float32))


def as_read(config: ModelConfig) -> ModelConfig:
    """The config with the scaling that divisors say, which is what a reader finds."""
    return replace(config, attention=tuple(_with_divisors(layer, config.max_length) for layer in config.attention))


def _with_divisors(layer: AttentionConfig, length: int | None) -> AttentionConfig:
    found = divisors(layer)
    if found is None or layer.rope is None or length is None:
        return layer
    scaling = LongropeScaling(
        short_factor=found, long_factor=found, original_max_position_embeddings=length, factor=1.0, attention_factor=1.0
    )
    return replace(layer, rope=replace(layer.rope, scaling=scaling))

"""The small file beside a port that states every convention of the result: `gqa_manifest.json`.

`config` holds the whole ModelConfig, so that what a port wrote can be read without knowing the family it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights.layouts.rules import conventions
from gqa_weights.layouts.tables import Layout

Json = dict[str, Any]
HEAD_ORDERS = {
    "contiguous": "query head n reads KV head n // G",
    "strided": "query head n reads KV head n % K",
}
QK_NORMS = {"rms": "each head", "rms_plus_one": "each head", "rms_full": "all heads of a token"}
NORMS = {
    "layer": "LayerNorm",
    "rms": "RMS norm, times the stored weight",
    "layer_plus_one": "LayerNorm, times 1 + the stored weight",
    "rms_plus_one": "RMS norm, times 1 + the stored weight",
}


def manifest(
    config: ModelConfig,
    layout: Layout,
    *,
    family: str,
    dtypes: Iterable[str],
    source: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Json:
    """Every convention of a checkpoint whose attention is stored in `layout`, as JSON.

    Args:
        config: The model's settings.
        layout: How its attention is stored.
        family: That of Hugging Face, whose config.json some settings come from.
        dtypes: Those of the tensors.
        source: Where the weights came from, and what was done to them.
        settings: Of the source's config.json, those that change no number, such as the ids of special tokens.

    Returns:
        The content of gqa_manifest.json.
    """
    kinds: dict[AttentionConfig, list[int]] = {}
    for number, layer in enumerate(config.attention):
        kinds.setdefault(layer, []).append(number)
    return {
        "layout": layout.name,
        "family": family,
        "dtype": ", ".join(sorted(set(dtypes))),
        "source": dict(source),
        "norm": NORMS[config.norm],
        "attention": [{"layers": layers, **_stated(layer, layout)} for layer, layers in kinds.items()],
        "config": config.to_dict(),
        "settings": dict(settings),
    }


def _stated(layer: AttentionConfig, layout: Layout) -> Json:
    """The conventions without which the weights are misread (SPEC 1, 2, 4, 8, 10, 11)."""
    stored = conventions(layout, layer)
    return {
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "v_head_dim": layer.v_head_dim,
        "head_order": HEAD_ORDERS[stored["head_order"]],
        "fused": stored["fused"] or None,
        "pairing": stored["pairing"],
        "rope": None if layer.rope is None else layer.rope.to_dict(),
        "scale": layer.head_dim**-0.5 if layer.scale is None else layer.scale,
        "softcap": layer.softcap,
        "causal": layer.causal,
        "window": layer.window,
        "window_counts": layer.window and "the query's own position too",
        "chunk": layer.chunk,
        "sinks": layer.sinks,
        "qk_norm": layer.qk_norm and f"RMS over {QK_NORMS[layer.qk_norm]}, times {stored['norm_factor']}",
        "qk_norm_eps": layer.qk_norm and layer.qk_norm_eps,
        "qk_norm_place": layer.qk_norm and ("after RoPE" if layer.qk_norm_after_rope else "before RoPE"),
        "query_scale": layer.query_scale
        and "1 + {} * log(1 + position // {}) on each query".format(*layer.query_scale),
        "output_gate": layer.output_gate and "context * sigmoid(gate_proj(query)), before o_proj",
        "rounded_to_1_ulp": stored["rounded"] or None,
    }

"""What a checkpoint holds, read off its settings and headers; no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec.config import AttentionConfig
from gqa_spec.rope import Pairing
from gqa_spec.sizes import kv_cache_bytes
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import FAMILIES, TensorMapping, read_attention, read_config
from gqa_weights.families.read import weights_of

HALF_PRECISION = 2  # bytes of an element of a cache, where a checkpoint's own dtype is none to compute in


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint from its settings and headers.

    Args:
        path: A file or a folder.

    Returns:
        Property -> plain value. Where layers differ, the value counts its layers. `cache_bytes_per_token` is that of
        all layers in the dtype of the weights (float16 for quantized ones); a window bounds the tokens, not this.

    Raises:
        CheckpointError: For files that are no checkpoint of a known family.
    """
    checkpoint = open_checkpoint(path)
    model = read_attention(checkpoint)
    layers = model.attention
    weights = weights_of(checkpoint)
    dtype = _main_dtype(weights)
    return {
        "format": checkpoint.format,
        "family": model.family,
        "layers": len(layers),
        **_numbers(model.numbers),
        "embed_dim": layers[0].embed_dim,
        "query_heads": _over(layers, lambda layer: layer.num_heads),
        "kv_heads": _over(layers, lambda layer: layer.num_kv_heads),
        "query_heads_per_kv_head": _over(layers, lambda layer: layer.group_size),
        "head_size": _over(layers, lambda layer: layer.head_dim),
        "biases": _over(layers, _biases),
        "rope": _over(layers, partial(_rope, FAMILIES[model.family].tensors.table.pairing)),
        "qk_norm": _over(layers, lambda layer: layer.qk_norm or "none"),
        "window": _over(layers, lambda layer: layer.window or "none"),
        "softcap": _over(layers, lambda layer: layer.softcap or "none"),
        "scale": _over(layers, lambda layer: layer.head_dim**-0.5 if layer.scale is None else layer.scale),
        "sinks": _over(layers, lambda layer: "yes" if layer.sinks else "none"),
        "experts": _experts(checkpoint, model.family),
        "dtype": ", ".join(f"{kind} ({count})" for kind, count in _dtypes(weights).most_common()),
        "bytes": _bytes(checkpoint),
        "tensors": len(checkpoint),
        "parameters": sum(prod(weights.info(name).shape) for name in weights),
        "cache_bytes_per_token": sum(kv_cache_bytes(layer, 1, bytes_per_element=dtype) for layer in layers),
    }


def _numbers(layers: tuple[int, ...]) -> dict[str, str]:
    """Of the layers with attention, where the model has others too."""
    return {} if layers == tuple(range(len(layers))) else {"numbers_of_layers": ", ".join(map(str, layers))}


def _experts(checkpoint: Checkpoint, family: str) -> str:
    if FAMILIES[family].attention_only:
        return "not read"
    config = read_config(checkpoint)
    if config.experts is None:
        return "none"
    experts = config.experts
    parts = [f"{experts.num_experts}, {experts.num_experts_per_token} for each token, of width {experts.expert_size}"]
    parts += [f"a shared one of width {experts.shared_size}"] * (experts.shared_size is not None)
    parts += [f"none in {len(experts.dense_layers)} layers"] * bool(experts.dense_layers)
    return ", ".join(parts)


def _over(layers: Iterable[AttentionConfig], value: Callable[[AttentionConfig], Any]) -> Any:
    found = Counter(map(value, layers))
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} on {count} layers" for value, count in found.most_common())


def _rope(stored: Pairing | None, layer: AttentionConfig) -> str:
    """stored: how the file's rows are paired, None for as the config says."""
    if layer.rope is None:
        return "none"
    scaling = layer.rope.scaling
    parts = [f"theta {layer.rope.theta:,.10g}", f"rows paired {stored or layer.rope.pairing}"]
    parts += [f"{layer.rotary_dim} of {layer.head_dim} dimensions"] * (layer.rotary_dim != layer.head_dim)
    if scaling is not None:
        numbers = {name: x for name, x in asdict(scaling).items() if x is not None and not isinstance(x, tuple)}
        parts.append(f"{type(scaling).__name__} ({', '.join(f'{name} {x}' for name, x in numbers.items())})")
    return ", ".join(parts)


def _biases(layer: AttentionConfig) -> str:
    on = [name for name, there in (("q, k, v", layer.qkv_bias), ("o", layer.out_bias)) if there]
    return " and ".join(on) or "none"


def _dtypes(weights: TensorMapping) -> Counter[str]:
    infos = map(weights.info, weights)
    return Counter(info.stored or info.dtype for info in infos)


def _main_dtype(weights: TensorMapping) -> int:
    """The bytes of an element of most weights."""
    kinds = Counter[int]()
    for info in map(weights.info, weights):
        quantized = info.stored is not None
        kinds[HALF_PRECISION if quantized else np.dtype(info.dtype).itemsize] += prod(info.shape)
    return kinds.most_common(1)[0][0] if kinds else HALF_PRECISION


def _bytes(checkpoint: Checkpoint) -> int:
    if checkpoint.path.is_file():
        return checkpoint.path.stat().st_size
    return sum(checkpoint.info(name).nbytes for name in checkpoint)

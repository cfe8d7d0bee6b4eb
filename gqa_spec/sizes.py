"""What a layer or a model costs, by arithmetic from its config: parameters, KV-cache bytes, arithmetic operations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, weight_shapes
from gqa_spec.model_config import ModelConfig


def parameter_count(config: AttentionConfig) -> int:
    """The number of parameters of one attention layer: equal to the sum over its canonical weights."""
    return sum(prod(shape) for shape in weight_shapes(config).values())


def kv_cache_bytes(
    config: AttentionConfig, length: int, *, batch_size: int = 1, bytes_per_element: int = 2, rolling: bool = False
) -> int:
    """Bytes that keys and values of one layer take for `length` positions: B * S * K * (H + Hv) * bytes.

    A rolling cache never holds more than the config's window. Raises ValueError for rolling without a window.
    """
    checks.integer("length", length, symbol="S", at_least=0)
    checks.integer("batch_size", batch_size, symbol="B", at_least=1)
    checks.integer("bytes_per_element", bytes_per_element, at_least=1)
    if rolling:
        checks.rolling(config.window)
    held = min(length, config.window) if rolling and config.window is not None else length
    return batch_size * held * config.num_kv_heads * (config.head_dim + config.v_head_dim) * bytes_per_element


def attention_flops(config: AttentionConfig, num_queries: int, num_keys: int, *, batch_size: int = 1) -> int:
    """Multiplications and additions of one pass: projections plus query . key plus weights . value, nothing skipped.

    num_kv_heads only enters through the key and value projections: fewer KV heads save memory, hardly arithmetic.
    """
    checks.integer("num_queries", num_queries, symbol="T", at_least=0)
    checks.integer("num_keys", num_keys, symbol="S", at_least=0)
    heads, kv_heads = config.num_heads, config.num_kv_heads
    gate = config.v_head_dim if config.output_gate else 0
    per_query = heads * (config.head_dim + config.v_head_dim + gate) * config.embed_dim
    per_key = kv_heads * (config.head_dim + config.v_head_dim) * config.kv_dim
    per_pair = heads * (config.head_dim + config.v_head_dim)
    return 2 * batch_size * (num_queries * per_query + num_keys * per_key + num_queries * num_keys * per_pair)


def model_kv_cache_bytes(
    layers: ModelConfig | Sequence[AttentionConfig],
    length: int,
    *,
    batch_size: int = 1,
    bytes_per_element: int = 2,
    rolling: bool = False,
) -> int:
    """As `kv_cache_bytes`, of all layers of a model: its config, or the settings of its attention layers.

    rolling: layers that have a window hold no more than it; the others hold every position in any case.
    """
    attention = layers.attention if isinstance(layers, ModelConfig) else layers
    sizes = {"batch_size": batch_size, "bytes_per_element": bytes_per_element}
    return sum(
        kv_cache_bytes(layer, length, rolling=rolling and layer.window is not None, **sizes) for layer in attention
    )

"""The one table of canonical weight names and their symbolic shapes (SPEC 16).

Rows follow the config's RoPE pairing; norm weights are stored raw (w, never 1 + w).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig


def symbolic_shapes(config: AttentionConfig) -> dict[str, str]:
    """Canonical name -> symbolic shape over the axis alphabet, in canonical order, of every weight that is on."""
    full = config.qk_norm == "rms_full"
    table = {
        "q_proj.weight": ("N*H, D", True),
        "q_proj.bias": ("N*H,", config.qkv_bias),
        "k_proj.weight": ("K*H, E", True),
        "k_proj.bias": ("K*H,", config.qkv_bias),
        "v_proj.weight": ("K*Hv, E", True),
        "v_proj.bias": ("K*Hv,", config.qkv_bias),
        "o_proj.weight": ("D, N*Hv", True),
        "o_proj.bias": ("D,", config.out_bias),
        "q_norm.weight": ("N*H," if full else "H,", config.qk_norm is not None),
        "k_norm.weight": ("K*H," if full else "H,", config.qk_norm is not None),
        "sinks": ("N,", config.sinks),
    }
    return {name: symbols for name, (symbols, on) in table.items() if on}


def weight_shapes(config: AttentionConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape in numbers."""
    return {name: _sizes(symbols, config.axes) for name, symbols in symbolic_shapes(config).items()}


def model_symbolic_shapes(config: ModelConfig) -> dict[str, str]:
    """As `symbolic_shapes`, for a whole model: V vocabulary, F feed-forward size, I input_dim.

    The weights of layer i stand under `blocks.{i}.`, its attention's under `blocks.{i}.attention.`.
    """
    tokens, before, after = (
        config.vocab_size is not None,
        config.norm_placement != "post",
        config.norm_placement != "pre",
    )
    biased, plain = config.feed_forward_bias, config.norm_bias
    table = {"embed.weight": ("V, D" if tokens else "D, I", True), "embed.bias": ("D,", not tokens)}
    for i, layer in enumerate(config.attention):
        block = f"blocks.{i}."
        table |= {
            f"{block}attention_norm.weight": ("D,", before),
            f"{block}attention_norm.bias": ("D,", before and plain),
            **{f"{block}attention.{name}": (symbols, True) for name, symbols in symbolic_shapes(layer).items()},
            f"{block}attention_post_norm.weight": ("D,", after),
            f"{block}attention_post_norm.bias": ("D,", after and plain),
            f"{block}feed_forward_norm.weight": ("D,", before),
            f"{block}feed_forward_norm.bias": ("D,", before and plain),
            f"{block}feed_forward.gate.weight": ("F, D", config.gated),
            f"{block}feed_forward.gate.bias": ("F,", config.gated and biased),
            f"{block}feed_forward.up.weight": ("F, D", True),
            f"{block}feed_forward.up.bias": ("F,", biased),
            f"{block}feed_forward.down.weight": ("D, F", True),
            f"{block}feed_forward.down.bias": ("D,", biased),
            f"{block}feed_forward_post_norm.weight": ("D,", after),
            f"{block}feed_forward_post_norm.bias": ("D,", after and plain),
        }
    table |= {
        "norm.weight": ("D,", True),
        "norm.bias": ("D,", plain),
        "head.weight": ("V, D", config.output == "logits" and not config.tied),
    }
    return {name: symbols for name, (symbols, on) in table.items() if on}


def model_weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """As `weight_shapes`, for a whole model."""
    ends = {"V": config.vocab_size or 0, "I": config.input_dim or 0, "F": config.feed_forward_size}
    shapes = {}
    for name, symbols in model_symbolic_shapes(config).items():
        layer = config.attention[int(name.split(".")[1])] if name.startswith("blocks.") else config.attention[0]
        shapes[name] = _sizes(symbols, layer.axes | ends)
    return shapes


def _sizes(symbols: str, axes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        prod(axes[factor] for factor in axis.strip().split("*")) for axis in symbols.split(",") if axis.strip()
    )

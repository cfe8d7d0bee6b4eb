"""The one table of canonical weight names and their symbolic shapes (SPEC 16).

Rows follow the config's RoPE pairing; norm weights are stored raw (w, never 1 + w).
"""

from __future__ import annotations

from math import prod

from gqa_spec.config import AttentionConfig


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
    return {name: _sizes(symbols, config) for name, symbols in symbolic_shapes(config).items()}


def _sizes(symbols: str, config: AttentionConfig) -> tuple[int, ...]:
    axes = config.axes
    return tuple(
        prod(axes[factor] for factor in axis.strip().split("*")) for axis in symbols.split(",") if axis.strip()
    )

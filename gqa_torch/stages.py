"""What a layer does between its weights: the settings of a call, rotation, and what the kernel gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor as Array

from gqa_spec import AttentionConfig
from gqa_spec.settings import KernelSettings, RotationSettings
from gqa_torch import rope
from gqa_torch.masks import Offset

Tables = tuple[Array, Array]  # cos and sin


def rotation_settings(key: Any, positions: Any, key_positions: Any, offset: Any, rope_length: Any) -> RotationSettings:
    """The settings of one call. Without a key, the keys are the queries' tokens and have their positions."""
    if key is None and key_positions is None:
        key_positions = positions
    return RotationSettings(positions=positions, key_positions=key_positions, offset=offset, rope_length=rope_length)


def kernel_settings(
    config: AttentionConfig, sinks: Array | None, offset: Offset, chunk: int | None, dropout_multiplier: Array | None
) -> KernelSettings:
    """The config's settings, and what is of one call."""
    return KernelSettings(
        causal=config.causal,
        window=config.window,
        chunk=chunk,
        offset=offset,
        scale=config.scale,
        softcap=config.softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )


def kernel_inputs(stages: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """query, key and value after the last stage that is on."""
    q, k = ([x for stage, x in stages.items() if stage.startswith(f"{letter}_")][-1] for letter in "qk")
    return q, k, stages["v_proj"]


def rotated(stages: Mapping[str, Array], pairing: str, query_tables: Tables, key_tables: Tables) -> dict[str, Array]:
    """Queries and keys rotated by RoPE's tables of cos and sin."""
    q, k, _ = kernel_inputs(stages)
    return {
        "q_rope": rope.apply_rotary(q, query_tables, pairing),
        "k_rope": rope.apply_rotary(k, key_tables, pairing),
    }

"""What a layer does between its weights: the settings of a call, QK-norm, RoPE, and what the kernel gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor as Array

from gqa_spec import AttentionConfig
from gqa_spec.settings import KernelSettings
from gqa_spec.stages import kernel_inputs
from gqa_torch import rope
from gqa_torch.masks import Offset
from gqa_torch.norm import qk_norm
from gqa_torch.parts import own
from gqa_torch.precision import widened

Tables = tuple[Array, Array]  # cos and sin
Norms = tuple[Float[Array, "W"], Float[Array, "W"]]  # weights of queries and of keys


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
        sinks=None if sinks is None else own(sinks),
        dropout_multiplier=dropout_multiplier,
    )


def rotated(stages: Mapping[str, Array], pairing: str, query_tables: Tables, key_tables: Tables) -> dict[str, Array]:
    """Queries and keys rotated by RoPE's tables of cos and sin."""
    q, k, _ = kernel_inputs(stages)
    return {
        "q_rope": rope.apply_rotary(q, query_tables, pairing),
        "k_rope": rope.apply_rotary(k, key_tables, pairing),
    }


def placed(
    config: AttentionConfig,
    stages: dict[str, Array],
    norms: Norms | None,
    query_tables: Tables | None,
    key_tables: Tables | None,
    positions: Any,
) -> dict[str, Array]:
    """The stages, with QK-norm, RoPE and the scale of queries by their positions, as far as they are on."""
    if norms is not None and not config.qk_norm_after_rope:
        stages |= _normed(config, stages, norms)
    if query_tables is not None and key_tables is not None:
        assert config.rope is not None
        stages |= rotated(stages, config.rope.pairing, query_tables, key_tables)
    if norms is not None and config.qk_norm_after_rope:
        stages |= _normed(config, stages, norms)
    if config.query_scale is not None:
        q, _, _ = kernel_inputs(stages)
        factor = rope.query_factor(positions, *config.query_scale, like=q)
        stages["q_scale"] = (widened(q) * factor).to(q.dtype)
    return stages


def _normed(config: AttentionConfig, stages: dict[str, Array], norms: Norms) -> dict[str, Array]:
    assert config.qk_norm is not None
    inputs = zip("qk", norms, kernel_inputs(stages)[:2], strict=True)
    kind, eps = config.qk_norm, config.qk_norm_eps
    return {f"{name}_norm": qk_norm(x, own(weight), kind, eps) for name, weight, x in inputs}

"""A case in the sizes that a target takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.cases.caches import CacheCase
from conformance.cases.table import Case
from conformance.targets.limits import Limits
from conformance.targets.protocol import Unsupported
from gqa_spec import AttentionConfig


def fit(case: Case, limits: Limits, *, layer: bool) -> Case:
    """The case in shapes that the target takes; raises Unsupported where that would be another case."""
    config, feature = case.config, case.feature
    _refuse_settings(config, limits)
    head_dim = limits.head_size(config.head_dim)
    sizes: dict[str, Any] = {"head_dim": head_dim}
    if not limits.grouped and config.num_kv_heads < config.num_heads:
        sizes["num_kv_heads"], grouping = config.num_heads, f"MHA {config.num_heads}"
        case = replace(case, name=f"{grouping} / {feature.name}", grouping=grouping)
    if not limits.value_size or feature.square:
        sizes["v_head_dim"] = head_dim
    if not limits.wide or feature.square:
        sizes["embed_dim"] = config.num_heads * head_dim
    if not limits.kv_width or feature.square:
        sizes["kv_dim"] = sizes.get("embed_dim", config.embed_dim)
    fitted = replace(case, config=replace(config, **limits.always, **sizes))
    if not layer or limits.cross or feature.square:
        return fitted
    if feature.long_queries or feature.poison:
        raise Unsupported("self-attention only")
    alone = replace(fitted.config, kv_dim=fitted.config.embed_dim)
    return replace(fitted, config=alone, feature=replace(feature, square=True), S=case.T)


def fit_cache(case: CacheCase, limits: Limits) -> CacheCase:
    """As `fit`, for a cache's case."""
    config = case.config
    _refuse_settings(config, limits)
    head_dim = limits.head_size(config.head_dim)
    sizes: dict[str, Any] = dict(limits.always) | {"head_dim": head_dim}
    if not limits.grouped:
        sizes["num_kv_heads"] = config.num_heads
    if not limits.wide:
        sizes["embed_dim"] = config.num_heads * head_dim
    return replace(case, settings=dict(case.settings) | sizes)


def _refuse_settings(config: AttentionConfig, limits: Limits) -> None:
    for name, setting in limits.always.items():
        if getattr(config, name) not in (None, False, setting):
            raise Unsupported(f"always has {name} = {setting!r}")

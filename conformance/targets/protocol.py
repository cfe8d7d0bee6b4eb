"""What a target is, and how it says that it cannot do something.

A kernel is any function `attention(query, key, value, mask, causal=..., window=..., ...)`, a layer any class that is
built with fields of `AttentionConfig` and takes canonical weights. Both say what they support by the names of their
parameters; `Limits` says the rest. What a target cannot do is unsupported, and never counted as passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from conformance.cases.caches import CacheCase
from conformance.cases.table import Case


class Unsupported(Exception):
    """A target cannot be asked this, and says why."""


class NotATarget(Exception):
    """A target cannot be found, imported or used."""


@dataclass(frozen=True)
class Limits:
    """What a signature cannot say. grouped: takes K < N. value_size: takes Hv different from H. cross: takes a key of
    its own. wide: takes D different from N * H. head_multiple: what H must be a multiple of. always: settings
    that cannot be switched off. dtypes: those it takes.
    """

    grouped: bool = True
    value_size: bool = True
    cross: bool = True
    wide: bool = True
    head_multiple: int = 1
    always: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dtypes: tuple[str, ...] = ("float64", "float32")


@contextmanager
def refusing(*sentences: str) -> Iterator[None]:
    """A library's own refusals, told by their text, are not failures but something that it does not support."""
    try:
        yield
    except Exception as error:
        if any(sentence in str(error) for sentence in sentences):
            raise Unsupported(str(error).strip().split("\n")[0]) from error
        raise


def fit(case: Case, limits: Limits, *, layer: bool) -> Case:
    """The case in the shapes that the target can be asked; raises Unsupported where that would ask something else."""
    config, feature = case.config, case.feature
    always = dict(limits.always)
    for name, setting in always.items():
        if getattr(config, name) not in (None, False, setting):
            raise Unsupported(f"always has {name} = {setting!r}")
    head_dim = -(-config.head_dim // limits.head_multiple) * limits.head_multiple
    sizes: dict[str, Any] = {"head_dim": head_dim}
    if not limits.grouped and config.num_kv_heads < config.num_heads:
        sizes["num_kv_heads"], grouping = config.num_heads, f"MHA {config.num_heads}"
        case = replace(case, name=f"{grouping} / {feature.name}", grouping=grouping)
    if not limits.value_size:
        sizes["v_head_dim"] = head_dim
    if not limits.wide or (feature.square and head_dim != config.head_dim):
        sizes["embed_dim"] = config.num_heads * head_dim
    fitted = replace(case, config=replace(config, **always, **sizes))
    if not layer or limits.cross or feature.square:
        return fitted
    if feature.long_queries or feature.mask == "poisoned padding":
        raise Unsupported("self-attention only")
    alone = replace(fitted.config, kv_dim=fitted.config.embed_dim)
    return replace(fitted, config=alone, feature=replace(feature, square=True), S=case.T)


def fit_cache(case: CacheCase, limits: Limits) -> CacheCase:
    """As `fit`, for a cache's case."""
    config = case.config
    for name, setting in limits.always.items():
        if getattr(config, name) not in (None, False, setting):
            raise Unsupported(f"always has {name} = {setting!r}")
    sizes: dict[str, Any] = dict(limits.always)
    if not limits.grouped:
        sizes["num_kv_heads"] = config.num_heads
    if not limits.wide:
        sizes["embed_dim"] = config.num_heads * config.head_dim
    return replace(case, settings=dict(case.settings) | sizes)

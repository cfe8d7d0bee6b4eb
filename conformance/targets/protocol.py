"""What a target is, and how it declares what it does not support.

A kernel is any function `attention(query, key, value, mask, causal=..., window=..., ...)`, a layer any class that is
built with fields of `AttentionConfig` and takes canonical weights. The names of their parameters state what they
support; `Limits` states the rest. What a target cannot do is unsupported, and never counted as passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from conformance.cases.caches import CacheCase
from conformance.cases.table import Case


class Unsupported(Exception):
    """A target does not support a case; the message is the reason."""


class NotATarget(Exception):
    """A target cannot be found, imported or used."""


@dataclass(frozen=True)
class Limits:
    """What a signature cannot state. grouped: takes K < N. value_size: takes Hv different from H. cross: takes a key of
    its own. wide: takes D different from N * H. head_multiple: what H must be a multiple of. always: settings
    that cannot be switched off. settings: the fields of AttentionConfig that it takes, where its signature does not
    name them. dtypes: those it takes.
    """

    grouped: bool = True
    value_size: bool = True
    cross: bool = True
    wide: bool = True
    head_multiple: int = 1
    always: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] = ("float64", "float32")


@contextmanager
def refusing(*sentences: str) -> Iterator[None]:
    """Errors whose text holds one of these sentences are a library's way to say that it does not support a case."""
    try:
        yield
    except Exception as error:
        if any(sentence in str(error) for sentence in sentences):
            raise Unsupported(str(error).strip().split("\n")[0]) from error
        raise


def fit(case: Case, limits: Limits, *, layer: bool) -> Case:
    """The case in shapes that the target takes; raises Unsupported where that would be another case."""
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
    if feature.long_queries or feature.poison:
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

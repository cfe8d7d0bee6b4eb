"""The arguments of the kernel and of a layer's call."""

from __future__ import annotations

from typing import Any

from gqa_spec.checks.arrays import (
    FLOATING,
    Shape,
    array,
    broadcastable,
    dtype_name,
    floating,
    is_integer_dtype,
    same_dtype,
    shape,
)
from gqa_spec.checks.settings import attention_settings
from gqa_spec.checks.values import integer, is_integer
from gqa_spec.settings import KernelSettings, RotationSettings


def mask(value: Any, kind: Any, full: Shape) -> None:
    """A mask is boolean or floating, exactly (T, S) or 4-D and broadcastable to (B, N, T, S) (SPEC 3)."""
    array("mask", value, kind)
    if dtype_name(value) != "bool" and dtype_name(value) not in FLOATING:
        raise TypeError(
            "mask: expected bool (True = may attend) or a floating dtype (added to the scores), "
            f"got {dtype_name(value)}"
        )
    got = tuple(value.shape)
    two = got == full[2:]
    four = len(got) == 4 and all(size in (1, limit) for size, limit in zip(got, full, strict=True))
    if not (two or four):
        hint = ": write mask[:, None]" if len(got) == 3 else ""
        hint = ": write mask[:, None, None] for a mask of keys (B, S)" if got == (full[0], full[3]) else hint
        raise ValueError(
            f"mask: expected (T, S) = {full[2:]} or 4 axes that broadcast to (B, N, T, S) = {full}, got {got}{hint}"
        )


def offset(value: Any, kind: Any, batch_size: int) -> None:
    """One integer, or an integer array () or (B,)."""
    if value is None or is_integer(value):
        return
    if not isinstance(value, kind) or not is_integer_dtype(value):
        got = dtype_name(value) if isinstance(value, kind) else repr(value)
        raise TypeError(f"offset: expected an integer or an integer array, got {got}")
    if tuple(value.shape) not in ((), (batch_size,)):
        raise ValueError(f"offset: expected one integer or (B,) = ({batch_size},), got {tuple(value.shape)}")


def positions(name: str, value: Any, kind: Any, batch_size: int, length: int, symbol: str) -> None:
    """An integer array (T,) or (B, T); (S,) or (B, S) for keys."""
    array(name, value, kind)
    if not is_integer_dtype(value):
        raise TypeError(f"{name}: expected an integer dtype, got {dtype_name(value)}")
    if tuple(value.shape) not in ((length,), (batch_size, length)):
        raise ValueError(
            f"{name}: expected ({symbol},) = ({length},) or (B, {symbol}) = ({batch_size}, {length}), "
            f"got {tuple(value.shape)}"
        )


def attention(query: Any, key: Any, value: Any, mask_: Any, kind: Any, settings: KernelSettings) -> None:
    """Every argument of `grouped_query_attention`; `kind` is the backend's array class."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        array(name, x, kind)
        floating(name, x)
        same_dtype(name, x, "the query's", dtype_name(query))
    shape("query", query.shape, "B N T H", {})
    batch, heads, queries, head_dim = query.shape
    shape("key", key.shape, "B K S H", {"B": batch, "H": head_dim})
    kv_heads, keys = key.shape[1:3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"key: expected K to divide N = {heads}, got {tuple(key.shape)}: axis K is {kv_heads}")
    shape("value", value.shape, "B K S Hv", {"B": batch, "K": kv_heads, "S": keys})
    attention_settings(settings.causal, settings.window, settings.chunk, settings.scale, settings.softcap)
    full = (batch, heads, queries, keys)
    if mask_ is not None:
        mask(mask_, kind, full)
    offset(settings.offset, kind, batch)
    sinks, multiplier = settings.sinks, settings.dropout_multiplier
    if sinks is not None:
        array("sinks", sinks, kind)
        floating("sinks", sinks)
        shape("sinks", sinks.shape, "N", {"N": heads})
    if multiplier is not None:
        array("dropout_multiplier", multiplier, kind)
        floating("dropout_multiplier", multiplier)
        broadcastable("dropout_multiplier", multiplier.shape, "B, N, T, S", full)


def layer_call(
    config: Any,
    dtype: str,
    query: Any,
    key: Any,
    value: Any,
    mask_: Any,
    kind: Any,
    rotation: RotationSettings,
    *,
    num_heads: int | None = None,
) -> None:
    """Every argument of a layer's call; `dtype` is the one that the layer computes in.

    num_heads: fewer than the config's where a layer is sharded or pruned by heads.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        array(name, x, kind)
        floating(name, x)
        same_dtype(name, x, "the layer's", dtype)
    shape("query", query.shape, "B T D", {"D": config.embed_dim})
    batch, queries = query.shape[:2]
    shape("key", key.shape, "B S E", {"B": batch, "E": config.kv_dim})
    keys = key.shape[1]
    shape("value", value.shape, "B S E", {"B": batch, "S": keys, "E": config.kv_dim})
    if mask_ is not None:
        mask(mask_, kind, (batch, config.num_heads if num_heads is None else num_heads, queries, keys))
    offset(rotation.offset, kind, batch)
    rotated = (("positions", rotation.positions, queries, "T"), ("key_positions", rotation.key_positions, keys, "S"))
    for name, x, length, symbol in rotated:
        if x is not None:
            if not config.uses_positions:
                raise ValueError(f"{name}: expected None for a layer without rope, whose positions rotate nothing")
            positions(name, x, kind, batch, length, symbol)
    if rotation.rope_length is not None:
        integer("rope_length", rotation.rope_length, at_least=1)


def projected_widths(config: Any, query: int, key: int, value: int) -> None:
    """Projections that have whole heads, and as many query heads for each KV head as the config.

    They may have fewer heads than the config: a part of a layer under tensor parallelism, or a pruned layer.
    """
    N, K, H, Hv = config.num_heads, config.num_kv_heads, config.head_dim, config.v_head_dim
    if (query, key, value) == (N * H, K * H, K * Hv):  # as almost always
        return
    for name, width, symbol, size in (("q_proj", query, "H", H), ("k_proj", key, "H", H), ("v_proj", value, "Hv", Hv)):
        if width % size:
            raise ValueError(f"{name}: expected a width that {symbol} = {size} divides, got {width}")
    if value // Hv != key // H:
        raise ValueError(f"v_proj: expected as many heads as k_proj, {key // H} of Hv = {Hv}, got {value // Hv}")
    if query // H != key // H * config.group_size:
        raise ValueError(
            f"q_proj: expected G = {config.group_size} query heads for each of {key // H} KV heads, got {query // H}: "
            "cut q_proj and k_proj into the same number of parts"
        )


def parts(contexts: Any, logsumexps: Any, kind: Any) -> None:
    """The contexts and logsumexps of attention over parts of the keys."""
    if not contexts or len(contexts) != len(logsumexps):
        raise ValueError(
            f"contexts, logsumexps: expected as many of both, at least one, got {len(contexts)} and {len(logsumexps)}"
        )
    known: dict[str, int] = {}
    for context, logsumexp in zip(contexts, logsumexps, strict=True):
        array("contexts", context, kind)
        floating("contexts", context)
        shape("contexts", context.shape, "B N T Hv", known)
        known = dict(zip(("B", "N", "T", "Hv"), context.shape, strict=True))
        array("logsumexps", logsumexp, kind)
        floating("logsumexps", logsumexp)
        shape("logsumexps", logsumexp.shape, "B N T", known)


def context_parallel(key: Any, mask_: Any, rotation: RotationSettings) -> None:
    """A layer that holds a part of each sequence says itself where its tokens are."""
    given = {"key": key, "mask": mask_, "positions": rotation.positions, "offset": rotation.offset}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(f"{', '.join(names)}: expected None under context parallelism, which places the tokens itself")

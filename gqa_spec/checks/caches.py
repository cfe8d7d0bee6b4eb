"""Caches, and what is appended to them (SPEC 13)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gqa_spec.checks.arrays import Shape, array, dtype_name, is_integer_dtype, shape
from gqa_spec.checks.settings import rolling
from gqa_spec.checks.values import boolean, integer


def cacheable(config: Any) -> None:
    """A layer whose earlier tokens never change: it is causal, and attends to itself (SPEC 13)."""
    if not config.causal:
        raise ValueError("cache: expected a layer with causal=True, got causal=False")
    if config.kv_dim != config.embed_dim:
        raise ValueError(f"cache: expected self-attention, E = D = {config.embed_dim}, got E = {config.kv_dim}")


def init_cache(config: Any, batch_size: Any, max_length: Any, rolling_: Any) -> None:
    """Every argument of a layer's `init_cache`, but for the dtype."""
    cacheable(config)
    integer("batch_size", batch_size, symbol="B", at_least=0)
    integer("max_length", max_length, at_least=1)
    boolean("rolling", rolling_)
    if rolling_:
        rolling(config.window)


def extend(
    config: Any, x: Shape, keys: Shape, values: Shape, rolling_: bool, *, num_kv_heads: int | None = None
) -> None:
    """x and the cache that a layer's `extend` is given, by their shapes.

    num_kv_heads: fewer than the config's where a layer is sharded by heads.
    """
    cacheable(config)
    shape("x", x, "B T D", {"D": config.embed_dim})
    known = {
        "B": x[0],
        "K": config.num_kv_heads if num_kv_heads is None else num_kv_heads,
        "H": config.head_dim,
        "Hv": config.v_head_dim,
    }
    shape("cache.keys", keys, "B K C H", known | ({"C": config.window} if rolling_ else {}))
    shape("cache.values", values, "B K C Hv", known | {"C": keys[2]})


def cache_lengths(value: Any, kind: Any, batch_size: int) -> None:
    """lengths of a layer's `extend`: how many tokens of each row are real."""
    array("lengths", value, kind)
    if not is_integer_dtype(value):
        raise TypeError(f"lengths: expected an integer dtype, got {dtype_name(value)}")
    shape("lengths", value.shape, "B", {"B": batch_size})


def cache_lengths_in_chunk(lengths: Iterable[int], chunk: int) -> None:
    for row, length in enumerate(lengths):
        if not 0 <= length <= chunk:
            raise ValueError(f"lengths: expected 0 <= length <= T = {chunk}, got {length} in row {row}")


def free_slots(capacity: int, lengths: Iterable[int], chunks: Iterable[int]) -> None:
    """Each row's tokens so far and its new ones fit."""
    for row, (length, chunk) in enumerate(zip(lengths, chunks, strict=True)):
        if length + chunk > capacity:
            raise ValueError(
                f"cache: expected length + chunk <= capacity = {capacity}, "
                f"got length {length} + chunk {chunk} in row {row}"
            )


def cache_not_consumed(consumed: bool) -> None:
    """Where extend writes in place, a cache can be extended once."""
    if consumed:
        raise ValueError(
            "cache: expected one that was not extended yet, got one already extended: "
            "use the cache that extend returned, or clone() it first to extend it twice"
        )


def cache_truncate(rolling_: bool, lengths: Iterable[int], held: Iterable[int]) -> None:
    """Each row keeps the first of the tokens that it holds; a rolling cache has not kept the first ones."""
    if rolling_:
        raise ValueError("truncate: expected a cache with rolling=False, which holds every token, got rolling=True")
    for row, (length, most) in enumerate(zip(lengths, held, strict=True)):
        if not 0 <= length <= most:
            raise ValueError(f"lengths: expected 0 <= length <= {most}, the cache's length, got {length} in row {row}")


def cache_rows(rows: Iterable[int], batch_size: int) -> None:
    """Rows of a cache, by number."""
    for row in rows:
        integer("rows", row, symbol="row", at_least=0)
        if row >= batch_size:
            raise ValueError(f"rows: expected 0 <= row < B = {batch_size}, got {row}")


def cache_grow(max_length: Any, capacity: int) -> None:
    integer("max_length", max_length, at_least=1)
    if max_length < capacity:
        raise ValueError(f"max_length: expected at least capacity = {capacity}, got {max_length}")


def cache_length_unchanged(lengths: Iterable[int], written: Iterable[int]) -> None:
    """A rolling cache's slots are counted back from its length, so that it must be the one that extend returned."""
    for row, (length, end) in enumerate(zip(lengths, written, strict=True)):
        if length != end:
            raise ValueError(
                f"cache.length: expected {end}, as extend returned it, got {length} in row {row}: a rolling cache "
                "cannot be set back; make one with rolling=False and truncate() it"
            )

"""One step of decoding: what a cache gets, and what its new tokens attend to. SPEC 13."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Integer

from gqa_jax.arrays import known
from gqa_jax.cache import KVCache
from gqa_spec import AttentionConfig, checks


def real_tokens(x: Array, lengths: Integer[Array, "B"] | None) -> Integer[Array, "B"]:
    """How many of each row's tokens are real, T unless given; x is (B, T, ...)."""
    B, T = x.shape[:2]
    if lengths is None:
        return jnp.full(B, T)
    checks.cache_lengths(lengths, Array, B)
    if (numbers := known(lengths)) is not None:
        checks.cache_lengths_in_chunk(numbers.tolist(), T)
    return jnp.clip(lengths.astype(int), 0, T)


def append(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], count: Integer[Array, "B"]
) -> tuple[KVCache, Array, Array]:
    """The cache with the first count[b] tokens of each row, and the keys and values that the new tokens attend to."""
    key, value = key.astype(cache.keys.dtype), value.astype(cache.values.dtype)
    if cache.rolling:
        keys, values = jnp.concatenate([cache.keys, key], axis=2), jnp.concatenate([cache.values, value], axis=2)
        newest = [_slots(x, count, cache.capacity) for x in (keys, values)]
        length, written = cache.length + count, None if cache.written is None else cache.written + count
        return replace(cache, keys=newest[0], values=newest[1], length=length, written=written), keys, values
    B, K, T, _ = key.shape
    token = jnp.arange(T)[None]
    stored = (token < count[:, None]) & fits(cache, count)[:, None]
    slots = jnp.where(stored, cache.length[:, None] + token, cache.capacity)  # past the end: dropped
    # with an index for the heads too: without one, XLA copies the whole cache before it writes
    places = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None], slots[:, None]
    filled = replace(
        cache,
        keys=cache.keys.at[places].set(key, mode="drop"),
        values=cache.values.at[places].set(value, mode="drop"),
        length=jnp.where(fits(cache, count), cache.length + count, cache.capacity + 1),
    )
    return filled, filled.keys, filled.values


def _slots(x: Float[Array, "B K S h"], start: Integer[Array, "B"], size: int) -> Float[Array, "B K s h"]:
    return jax.vmap(partial(lax.dynamic_slice_in_dim, slice_size=size, axis=1))(x, start)


def fits(cache: KVCache, count: Integer[Array, "B"]) -> Bool[Array, "B"]:
    """Which rows have free slots for count[b] more tokens; a row that once had none never has. A row of a rolling cache
    has, unless its length was changed by hand."""
    if cache.written is not None:
        return cache.length == cache.written
    return cache.length + count <= cache.capacity


def kernel_arguments(
    cache: KVCache, config: AttentionConfig, T: int
) -> tuple[Bool[Array, "B 1 T S"] | None, Any, int | None]:
    """The kernel's mask, offset and chunk for T new tokens and the keys that `append` returns.

    The offset is an array even where its value is known: as a number, each new length would compile anew.
    """
    if not cache.rolling:
        return None, cache.length, config.chunk
    query_position = cache.length[:, None, None, None] + jnp.arange(T)[None, None, :, None]
    first_position = (cache.length - cache.capacity)[:, None, None, None]
    key_position = first_position + jnp.arange(cache.capacity + T)[None, None, None]
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, not slots
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return visible, cache.capacity, None

"""One step of decoding: what a cache gets, and what its new tokens attend to. SPEC 13."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from gqa_numpy.cache import KVCache
from gqa_spec import AttentionConfig, checks

Array = np.ndarray


def real_tokens(x: Array, lengths: Integer[Array, "B"] | None) -> Integer[Array, "B"]:
    """How many of each row's tokens are real, T unless given; x is (B, T, ...)."""
    B, T = x.shape[:2]
    if lengths is None:
        return np.full(B, T)
    checks.cache_lengths(lengths, Array, B)
    checks.cache_lengths_in_chunk(lengths.tolist(), T)
    return lengths


def append(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], count: Integer[Array, "B"]
) -> tuple[KVCache, Array, Array]:
    """The cache with the first count[b] tokens of each row, and the keys and values that the new tokens attend to."""
    key, value = key.astype(cache.keys.dtype), value.astype(cache.values.dtype)
    new_cache = replace(cache, length=cache.length + count, consumed=False)
    if cache.rolling:
        new_cache.written = new_cache.length.copy()
        keys, values = np.concatenate([cache.keys, key], axis=2), np.concatenate([cache.values, value], axis=2)
        for b, new in enumerate(count):
            cache.keys[b], cache.values[b] = (x[b, :, new : new + cache.capacity] for x in (keys, values))
        return new_cache, keys, values
    for b, (start, new) in enumerate(zip(cache.length, count, strict=True)):
        cache.keys[b, :, start : start + new] = key[b, :, :new]
        cache.values[b, :, start : start + new] = value[b, :, :new]
    end = new_cache.length.max(initial=0)
    return new_cache, cache.keys[:, :, :end], cache.values[:, :, :end]


def kernel_arguments(
    cache: KVCache, config: AttentionConfig, T: int
) -> tuple[Bool[Array, "B 1 T S"] | None, Any, int | None]:
    """The kernel's mask, offset and chunk for T new tokens and the keys that `append` returns."""
    if not cache.rolling:
        return None, cache.length, config.chunk
    query_position = cache.length[:, None, None, None] + np.arange(T)[:, None]
    key_position = (cache.length - cache.capacity)[:, None, None, None] + np.arange(cache.capacity + T)
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, not slots
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return visible, cache.capacity, None

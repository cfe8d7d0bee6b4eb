"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Extending writes into the storage of a cache and returns a new KVCache on it; the old one is consumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from gqa_spec import AttentionConfig, checks

Array = np.ndarray


@dataclass(eq=False)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far. A rolling cache holds the last C = window
    positions in order, the newest last; any other holds position j in slot j. rope_length fixes the frequencies that
    depend on the length. consumed: extended already, and of no further use.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int
    rolling: bool
    consumed: bool = False

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def clone(self) -> KVCache:
        """A copy with storage of its own: extend both, to fork a prefix for instance.

        Raises:
            ValueError: If this cache was extended already.
        """
        checks.cache_not_consumed(self.consumed)
        return replace(self, keys=self.keys.copy(), values=self.values.copy(), length=self.length.copy())


def empty(config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: Any) -> KVCache:
    slots = config.window if rolling and config.window is not None else max_length
    shape = (batch_size, config.num_kv_heads, slots)
    return KVCache(
        keys=np.zeros((*shape, config.head_dim), dtype),
        values=np.zeros((*shape, config.v_head_dim), dtype),
        length=np.zeros(batch_size, np.int64),
        rope_length=max_length,
        rolling=rolling,
    )


def append(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], count: Integer[Array, "B"]
) -> tuple[KVCache, Array, Array]:
    """The cache with the first count[b] tokens of each row, and the keys and values that the new tokens attend to."""
    key, value = key.astype(cache.keys.dtype), value.astype(cache.values.dtype)
    cache.consumed = True
    new_cache = replace(cache, length=cache.length + count, consumed=False)
    if cache.rolling:
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

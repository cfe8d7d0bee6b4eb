"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Storage is written in place, so a cache is a handle: extending spends it and returns the next one on that storage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from gqa_spec import AttentionConfig, checks

Array = np.ndarray


@dataclass(eq=False)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far. A rolling cache holds the last C = window
    positions in order, the newest last; any other holds position j in slot j. rope_length fixes the frequencies that
    depend on the length. spent: extended already, and of no further use.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int
    rolling: bool
    spent: bool = False

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def clone(self) -> KVCache:
        """A copy with storage of its own: extend both, to fork a prefix for instance. A spent handle raises."""
        checks.cache_not_consumed(self.spent)
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


def appended(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], count: Integer[Array, "B"]
) -> tuple[KVCache, Array, Array]:
    """The cache with the first count[b] tokens of each row, and the keys and values that those attend to."""
    key, value = key.astype(cache.keys.dtype), value.astype(cache.values.dtype)
    cache.spent = True
    longer = replace(cache, length=cache.length + count, spent=False)
    if cache.rolling:
        keys, values = np.concatenate([cache.keys, key], axis=2), np.concatenate([cache.values, value], axis=2)
        for b, new in enumerate(count):
            cache.keys[b], cache.values[b] = (x[b, :, new : new + cache.capacity] for x in (keys, values))
        return longer, keys, values
    for b, (start, new) in enumerate(zip(cache.length, count, strict=True)):
        cache.keys[b, :, start : start + new] = key[b, :, :new]
        cache.values[b, :, start : start + new] = value[b, :, :new]
    end = longer.length.max(initial=0)
    return longer, cache.keys[:, :, :end], cache.values[:, :, :end]


def visibility(cache: KVCache, T: int, config: AttentionConfig) -> dict[str, Any]:
    """Which of the keys that `appended` returns the T new tokens may see, as the kernel's mask, offset and chunk."""
    if not cache.rolling:
        return {"mask": None, "offset": cache.length, "chunk": config.chunk}
    query_position = cache.length[:, None, None, None] + np.arange(T)[:, None]
    key_position = (cache.length - cache.capacity)[:, None, None, None] + np.arange(cache.capacity + T)
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, which a rolled slot has left behind
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return {"mask": visible, "offset": cache.capacity, "chunk": None}

"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Extending a cache returns a new one and leaves the old one as it is, so that it may be extended again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Integer

from gqa_spec import AttentionConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far, C + 1 once a row has overflowed under jit.
    A rolling cache holds the last C = window positions in order, the newest last; any other holds position j in slot j.
    rope_length fixes the frequencies that depend on the length. A pytree: the arrays are its leaves.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int = field(metadata={"static": True})
    rolling: bool = field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def clone(self) -> KVCache:
        """A copy with storage of its own, which is still there after this one is donated to jit."""
        return jax.tree.map(jnp.copy, self)


def empty(config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: Any) -> KVCache:
    slots = config.window if rolling else max_length
    return KVCache(
        keys=jnp.zeros((batch_size, config.num_kv_heads, slots, config.head_dim), dtype),
        values=jnp.zeros((batch_size, config.num_kv_heads, slots, config.v_head_dim), dtype),
        length=jnp.zeros(batch_size, int),
        rope_length=max_length,
        rolling=rolling,
    )


def append(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], count: Integer[Array, "B"]
) -> tuple[KVCache, Array, Array]:
    """The cache with the first count[b] tokens of each row, and the keys and values that the new tokens attend to."""
    key, value = key.astype(cache.keys.dtype), value.astype(cache.values.dtype)
    if cache.rolling:
        keys, values = jnp.concatenate([cache.keys, key], axis=2), jnp.concatenate([cache.values, value], axis=2)
        newest = [_slots(x, count, cache.capacity) for x in (keys, values)]
        rolled = replace(cache, keys=newest[0], values=newest[1], length=cache.length + count)
        return rolled, keys, values
    B, K, T, _ = key.shape
    stored = (jnp.arange(T) < count[:, None]) & fits(cache, count)[:, None]
    slots = jnp.where(stored, cache.length[:, None] + jnp.arange(T), cache.capacity)  # past the end: dropped
    # with an index for the heads too: without one, XLA copies the whole cache before it writes
    places = jnp.arange(B)[:, None, None], jnp.arange(K)[:, None], slots[:, None]
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
    """Which rows have free slots for count[b] more tokens; a row that once had none never has."""
    return (cache.length + count <= cache.capacity) | cache.rolling


def kernel_arguments(
    cache: KVCache, config: AttentionConfig, T: int
) -> tuple[Bool[Array, "B 1 T S"] | None, Any, int | None]:
    """The kernel's mask, offset and chunk for T new tokens and the keys that `append` returns.

    The offset is an array even where its value is known: as a number, each new length would compile anew.
    """
    if not cache.rolling:
        return None, cache.length, config.chunk
    query_position = cache.length[:, None, None, None] + jnp.arange(T)[:, None]
    key_position = (cache.length - cache.capacity)[:, None, None, None] + jnp.arange(cache.capacity + T)
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, not slots
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return visible, cache.capacity, None

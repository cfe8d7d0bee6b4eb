"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Extending a cache returns a new one and leaves the old one as it is, so that it may be extended again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Integer

from gqa_jax.arrays import known
from gqa_spec import AttentionConfig, checks

Numbers = int | Sequence[int] | Integer[Array, "..."]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far, C + 1 once a row has overflowed under jit.
    A rolling cache holds the last C = window positions in order, the newest last, and written, the length that they
    were written for; any other holds position j in slot j. rope_length fixes the frequencies that depend on the length.
    A pytree: the arrays are its leaves.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int = field(metadata={"static": True})
    rolling: bool = field(metadata={"static": True})
    written: Array | None = None

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def check_free_slots(self, counts: int | np.ndarray | None) -> None:
        """Whether each row can be extended by so many tokens, where the numbers are known."""
        length, written = known(self.length), None if self.written is None else known(self.written)
        if length is not None and written is not None:
            checks.cache_length_unchanged(length.tolist(), written.tolist())
        elif length is not None and counts is not None and not self.rolling:
            checks.free_slots(self.capacity, length.tolist(), np.broadcast_to(counts, length.shape).tolist())

    def clone(self) -> KVCache:
        """A copy with storage of its own, which is still there after this one is donated to jit."""
        return jax.tree.map(jnp.copy, self)

    def truncate(self, lengths: Numbers) -> KVCache:
        """Roll back to the first tokens of each row, as if the others had never been appended.

        Args:
            lengths: How many tokens each row keeps, an integer or (B,).

        Returns:
            The new cache.

        Raises:
            ValueError: For a rolling cache, and for a length that is negative or above the row's; under jit, where it
                cannot, such a length is clipped.
        """
        checks.cache_truncate(self.rolling, (), ())
        keep = _numbers("lengths", lengths)
        keep = jnp.full_like(self.length, keep) if keep.ndim == 0 else keep
        checks.shape("lengths", keep.shape, "B", {"B": self.length.shape[0]})
        asked, length = known(keep), known(self.length)
        if asked is not None and length is not None:
            checks.cache_truncate(self.rolling, asked.tolist(), length.tolist())
        keep = jnp.clip(keep, 0, jnp.minimum(self.length, self.capacity))
        kept = (jnp.arange(self.capacity)[None] < keep[:, None])[:, None, :, None]
        return replace(
            self,
            keys=jnp.where(kept, self.keys, 0),
            values=jnp.where(kept, self.values, 0),
            length=jnp.where(self.length > self.capacity, self.length, keep),  # an overflowed row has lost tokens
        )

    def select(self, rows: Numbers) -> KVCache:
        """Some rows, in any order and as often as they are given: the survivors of a beam search, for instance.

        Args:
            rows: Their numbers, 0 to B - 1.

        Returns:
            A cache of as many rows.

        Raises:
            ValueError: For a row that there is not; under jit, where it cannot, such a number is clipped.
        """
        rows = self._rows(rows)
        return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), self)

    def repeat(self, n: int) -> KVCache:
        """Each row n times, next to each other: one prefix for n continuations.

        Returns:
            A cache of n * B rows.

        Raises:
            ValueError: For n < 1.
        """
        checks.integer("n", n, at_least=1)
        return jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), self)

    def reset(self, rows: Numbers) -> KVCache:
        """Empty some rows, for other sequences.

        Args:
            rows: Their numbers, 0 to B - 1.

        Returns:
            The new cache.

        Raises:
            ValueError: For a row that there is not; under jit, where it cannot, nothing is done for it.
        """
        rows = self._rows(rows)
        return jax.tree.map(lambda x: x.at[rows].set(0, mode="drop"), self)

    def grow(self, max_length: int) -> KVCache:
        """A cache with slots for max_length tokens in each row. A rolling cache has slots already.

        rope_length stays, since the keys were rotated with it.

        Raises:
            ValueError: For fewer slots than there are.
        """
        if self.rolling:
            return self
        checks.cache_grow(max_length, self.capacity)
        added = ((0, 0), (0, 0), (0, max_length - self.capacity), (0, 0))
        return replace(
            self,
            keys=jnp.pad(self.keys, added),
            values=jnp.pad(self.values, added),
            length=jnp.where(self.length > self.capacity, max_length + 1, self.length),
        )

    def _rows(self, rows: Numbers) -> Integer[Array, "b"]:
        chosen = _numbers("rows", rows)
        checks.shape("rows", chosen.shape, "b", {})
        numbers = known(chosen)
        if numbers is not None:
            checks.cache_rows(numbers.tolist(), self.length.shape[0])
        return chosen


class ModelCache(tuple[KVCache, ...]):
    """The caches of a model's layers, a tuple, with the operations of one for all of them."""

    __slots__ = ()

    def clone(self) -> ModelCache:
        """`KVCache.clone` of each."""
        return ModelCache(cache.clone() for cache in self)

    def truncate(self, lengths: Numbers) -> ModelCache:
        """`KVCache.truncate` of each."""
        return ModelCache(cache.truncate(lengths) for cache in self)

    def select(self, rows: Numbers) -> ModelCache:
        """`KVCache.select` of each."""
        return ModelCache(cache.select(rows) for cache in self)

    def repeat(self, n: int) -> ModelCache:
        """`KVCache.repeat` of each."""
        return ModelCache(cache.repeat(n) for cache in self)

    def reset(self, rows: Numbers) -> ModelCache:
        """`KVCache.reset` of each."""
        return ModelCache(cache.reset(rows) for cache in self)

    def grow(self, max_length: int) -> ModelCache:
        """`KVCache.grow` of each."""
        return ModelCache(cache.grow(max_length) for cache in self)


jax.tree_util.register_pytree_with_keys(
    ModelCache,
    lambda caches: ([(jax.tree_util.SequenceKey(i), cache) for i, cache in enumerate(caches)], None),
    lambda _, caches: ModelCache(caches),
)


def empty(
    config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: Any, *, num_kv_heads: int
) -> KVCache:
    """num_kv_heads: those that the layer has here, other than the config's where it is pruned or spread over a mesh."""
    slots = config.window if rolling else max_length
    return KVCache(
        keys=jnp.zeros((batch_size, num_kv_heads, slots, config.head_dim), dtype),
        values=jnp.zeros((batch_size, num_kv_heads, slots, config.v_head_dim), dtype),
        length=jnp.zeros(batch_size, int),
        rope_length=max_length,
        rolling=rolling,
        written=jnp.zeros(batch_size, int) if rolling else None,
    )


def _numbers(name: str, value: Numbers) -> Integer[Array, "..."]:
    """Integers, from one, a sequence or an array."""
    numbers = value if isinstance(value, Array) else np.asarray(value)
    if numbers.size and not checks.is_integer_dtype(numbers):
        raise TypeError(f"{name}: expected an integer dtype, got {checks.dtype_name(numbers)}")
    return jnp.asarray(numbers, int)

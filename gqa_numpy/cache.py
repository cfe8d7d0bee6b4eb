"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Extending writes into the storage of a cache and returns a new KVCache on it; the old one is consumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Integer

from gqa_spec import AttentionConfig, checks

Array = np.ndarray


_CONSUMING = Lock()
Numbers = int | Sequence[int] | Integer[Array, "..."]


@dataclass(eq=False)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far. A rolling cache holds the last C = window
    positions in order, the newest last, and written, the length that they were written for; any other holds position j
    in slot j. rope_length fixes the frequencies that depend on the length. consumed: extended, truncated or reset
    already, and of no further use.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int
    rolling: bool
    written: Array | None = None
    consumed: bool = False

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def check_free_slots(self, counts: list[int]) -> None:
        """Whether each row can be extended by so many tokens."""
        checks.cache_not_consumed(self.consumed)
        if self.written is not None:
            checks.cache_length_unchanged(self.length.tolist(), self.written.tolist())
        else:
            checks.free_slots(self.capacity, self.length.tolist(), counts)

    def clone(self) -> KVCache:
        """A copy with storage of its own: extend both, to fork a prefix for instance.

        Raises:
            ValueError: If this cache is consumed.
        """
        return self.select(np.arange(len(self.length)))

    def truncate(self, lengths: Numbers) -> KVCache:
        """Roll back to the first tokens of each row, as if the others had never been appended.

        Args:
            lengths: How many tokens each row keeps, an integer or (B,).

        Returns:
            The new cache, on the storage of this one, which is consumed.

        Raises:
            ValueError: For a rolling cache, for a length that is negative or above the row's, and if this cache is
                consumed.
        """
        keep = self.lengths_to_keep(lengths)
        consume(self)
        for b, (length, end) in enumerate(zip(keep, self.length, strict=True)):
            self.keys[b, :, length:end] = self.values[b, :, length:end] = 0
        return replace(self, length=keep, consumed=False)

    def lengths_to_keep(self, lengths: Numbers) -> Integer[Array, "B"]:
        """The argument of `truncate` once it is checked, as (B,)."""
        checks.cache_not_consumed(self.consumed)
        keep = _numbers("lengths", lengths)
        keep = np.full_like(self.length, keep) if keep.ndim == 0 else keep
        checks.shape("lengths", keep.shape, "B", {"B": len(self.length)})
        checks.cache_truncate(self.rolling, keep.tolist(), self.length.tolist())
        return keep

    def select(self, rows: Numbers) -> KVCache:
        """Copy some rows, in any order and as often as they are given: the survivors of a beam search, for instance.

        Args:
            rows: Their numbers, 0 to B - 1.

        Returns:
            A cache with storage of its own, of as many rows.

        Raises:
            ValueError: For a row that there is not, and if this cache is consumed.
        """
        checks.cache_not_consumed(self.consumed)
        rows = self._rows(rows)
        written = None if self.written is None else self.written[rows]
        return replace(self, keys=self.keys[rows], values=self.values[rows], length=self.length[rows], written=written)

    def repeat(self, n: int) -> KVCache:
        """Copy each row n times, next to each other: one prefix for n continuations.

        Returns:
            A cache with storage of its own, of n * B rows.

        Raises:
            ValueError: For n < 1, and if this cache is consumed.
        """
        checks.integer("n", n, at_least=1)
        return self.select(np.repeat(np.arange(len(self.length)), n))

    def reset(self, rows: Numbers) -> KVCache:
        """Empty some rows, for other sequences.

        Args:
            rows: Their numbers, 0 to B - 1.

        Returns:
            The new cache, on the storage of this one, which is consumed.

        Raises:
            ValueError: For a row that there is not, and if this cache is consumed.
        """
        rows = self._rows(rows)
        consume(self)
        self.keys[rows] = self.values[rows] = 0
        length, written = self.length.copy(), None if self.written is None else self.written.copy()
        for each in (length, written):
            if each is not None:
                each[rows] = 0
        return replace(self, length=length, written=written, consumed=False)

    def grow(self, max_length: int) -> KVCache:
        """Copy into a cache with slots for max_length tokens in each row. A rolling cache has slots already.

        rope_length stays, since the keys were rotated with it.

        Returns:
            A cache with storage of its own.

        Raises:
            ValueError: For fewer slots than there are, and if this cache is consumed.
        """
        checks.cache_not_consumed(self.consumed)
        if self.rolling:
            return self.clone()
        checks.cache_grow(max_length, self.capacity)
        added = ((0, 0), (0, 0), (0, max_length - self.capacity), (0, 0))
        return replace(
            self, keys=np.pad(self.keys, added), values=np.pad(self.values, added), length=self.length.copy()
        )

    def _rows(self, rows: Numbers) -> Integer[Array, "b"]:
        chosen = _numbers("rows", rows)
        checks.shape("rows", chosen.shape, "b", {})
        checks.cache_rows(chosen.tolist(), len(self.length))
        return chosen


class ModelCache(tuple[KVCache, ...]):
    """The caches of a model's layers, a tuple, with the operations of one for all of them."""

    __slots__ = ()

    def clone(self) -> ModelCache:
        """`KVCache.clone` of each."""
        return ModelCache(cache.clone() for cache in self)

    def truncate(self, lengths: Numbers) -> ModelCache:
        """`KVCache.truncate` of each, or of none where one refuses."""
        for cache in self:
            cache.lengths_to_keep(lengths)
        return ModelCache(cache.truncate(lengths) for cache in self)

    def select(self, rows: Numbers) -> ModelCache:
        """`KVCache.select` of each."""
        return ModelCache(cache.select(rows) for cache in self)

    def repeat(self, n: int) -> ModelCache:
        """`KVCache.repeat` of each."""
        return ModelCache(cache.repeat(n) for cache in self)

    def reset(self, rows: Numbers) -> ModelCache:
        """`KVCache.reset` of each, or of none where one refuses."""
        for cache in self:
            checks.cache_not_consumed(cache.consumed)
        return ModelCache(cache.reset(rows) for cache in self)

    def grow(self, max_length: int) -> ModelCache:
        """`KVCache.grow` of each."""
        return ModelCache(cache.grow(max_length) for cache in self)


def consume(*caches: KVCache) -> None:
    """Mark caches as extended before their storage is written, all or none: of two threads one gets the error."""
    with _CONSUMING:
        for cache in caches:
            checks.cache_not_consumed(cache.consumed)
        for cache in caches:
            cache.consumed = True


def empty(
    config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: Any, num_kv_heads: int
) -> KVCache:
    """num_kv_heads: those that the layer has, fewer than the config's where it is pruned."""
    slots = config.window if rolling and config.window is not None else max_length
    shape = (batch_size, num_kv_heads, slots)
    return KVCache(
        keys=np.zeros((*shape, config.head_dim), dtype),
        values=np.zeros((*shape, config.v_head_dim), dtype),
        length=np.zeros(batch_size, np.int64),
        rope_length=max_length,
        rolling=rolling,
        written=np.zeros(batch_size, np.int64) if rolling else None,
    )


def _numbers(name: str, value: Numbers) -> Integer[Array, "..."]:
    """Integers, from one, a sequence or an array."""
    numbers = np.asarray(value)
    if numbers.size and not checks.is_integer_dtype(numbers):
        raise TypeError(f"{name}: expected an integer dtype, got {checks.dtype_name(numbers)}")
    return numbers.astype(np.int64)

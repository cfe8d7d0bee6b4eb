"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Extending writes into the storage of a cache and returns a new KVCache on it; the old one is consumed. Storage is always
made outside inference mode, since it could not be written outside later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Self

import torch
from jaxtyping import Integer
from torch import Tensor as Array

from gqa_spec import AttentionConfig, checks

Numbers = int | Sequence[int] | Integer[Array, "..."]
_CONSUMING = Lock()


@dataclass(eq=False)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far, C + 1 once a row has overflowed under
    torch.compile. length is kept on the CPU, so that no step waits for a device. A rolling cache holds the last
    C = window positions in order, the newest last, and written, the length that they were written for; any other holds
    position j in slot j. rope_length fixes the frequencies that depend on the length. consumed: extended already, and
    of no further use.
    """

    keys: Array
    values: Array
    length: Array
    rope_length: int
    rolling: bool
    consumed: bool = False
    written: Array | None = None

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    @torch.inference_mode(False)
    def clone(self) -> Self:
        """Copy into storage of its own: extend both, to fork a prefix for instance.

        Raises:
            ValueError: For a cache that was extended already.
        """
        checks.cache_not_consumed(self.consumed)
        return self._with(self.keys.clone(), self.values.clone(), torch.clone)

    def truncate(self, lengths: Numbers) -> Self:
        """Keep the first tokens of each row; this cache is consumed.

        Args:
            lengths: How many to keep, one number or one for each row, (B,).

        Raises:
            ValueError: For a cache that was extended already or is rolling, and for more tokens than a row holds.
            TypeError: For numbers that are no integers.
        """
        kept = self.lengths_to_keep(lengths)
        consume(self)
        slot = torch.arange(self.capacity, device="cpu")
        # an overflowed row has lost tokens
        return self._emptied(slot >= kept[:, None], lambda n: torch.where(n > self.capacity, n, kept))

    def lengths_to_keep(self, lengths: Numbers) -> Integer[Array, "B"]:
        """The argument of `truncate` once it is checked, as (B,)."""
        checks.cache_not_consumed(self.consumed)
        kept = _numbers("lengths", lengths)
        kept = kept.expand(self.length.shape) if kept.ndim == 0 else kept
        checks.shape("lengths", kept.shape, "B", {"B": self.length.shape[0]})
        checks.cache_truncate(self.rolling, kept.tolist(), self.length.tolist())
        return kept.clone()

    @torch.inference_mode(False)
    def select(self, rows: Numbers) -> Self:
        """Copy these rows, in this order: the beams that go on, for instance.

        Args:
            rows: Numbers of rows, (b,); any of them any number of times.

        Raises:
            ValueError: For a cache that was extended already, and for a row that it does not have.
            TypeError: For numbers that are no integers.
        """
        checks.cache_not_consumed(self.consumed)
        chosen = self._rows(rows)
        there = chosen.to(self.keys.device)
        return self._with(self.keys[there], self.values[there], lambda n: n[chosen])

    def repeat(self, n: int) -> Self:
        """Copy each row n times, next to each other: one prefix for n continuations, for instance.

        Raises:
            ValueError: For a cache that was extended already, and for n < 1.
            TypeError: For an n that is no integer.
        """
        checks.integer("n", n, at_least=1)
        return self.select(torch.arange(self.length.shape[0], device="cpu").repeat_interleave(n))

    def reset(self, rows: Numbers) -> Self:
        """Empty these rows, for other sequences; this cache is consumed.

        Args:
            rows: Numbers of rows, (b,).

        Raises:
            ValueError: For a cache that was extended already, and for a row that it does not have.
            TypeError: For numbers that are no integers.
        """
        chosen = self._rows(rows)
        consume(self)
        empty = torch.zeros(self.length.shape, dtype=torch.bool, device="cpu")
        empty[chosen] = True
        return self._emptied(empty[:, None].expand(-1, self.capacity), lambda n: n.masked_fill(empty, 0))

    @torch.inference_mode(False)
    def grow(self, max_length: int) -> Self:
        """Copy into more slots. Frequencies that depend on the length stay as they are.

        Args:
            max_length: How many tokens each row can have. A rolling cache needs no more slots.

        Raises:
            ValueError: For a cache that was extended already, and for fewer slots than it has.
            TypeError: For a max_length that is no integer.
        """
        checks.cache_not_consumed(self.consumed)
        checks.cache_grow(max_length, 0 if self.rolling else self.capacity)
        more = 0 if self.rolling else max_length - self.capacity
        keys, values = (torch.nn.functional.pad(x, (0, 0, 0, more)).clone() for x in (self.keys, self.values))
        return self._with(
            keys, values, lambda n: n.clone() if self.rolling else torch.where(n > self.capacity, max_length + 1, n)
        )

    def _rows(self, rows: Numbers) -> Integer[Array, "b"]:
        chosen = _numbers("rows", rows)
        checks.shape("rows", chosen.shape, "b", {})
        checks.cache_rows(chosen.tolist(), self.length.shape[0])
        return chosen

    def _with(self, keys: Array, values: Array, lengths: Callable[[Array], Array]) -> Self:
        """These keys and values, and lengths computed from those of this cache."""
        written = None if self.written is None else lengths(self.written)
        length = lengths(self.length)
        return replace(self, keys=keys, values=values, length=length, written=written, consumed=False)

    @torch.no_grad()
    def _emptied(self, slots: Array, lengths: Callable[[Array], Array]) -> Self:
        """With 0 in the slots (B, C) that are True, in the same storage."""
        for held in (self.keys, self.values):
            held.masked_fill_(slots.to(held.device)[:, None, :, None], 0)
        return self._with(self.keys, self.values, lengths)


class ModelCache(tuple[KVCache, ...]):
    """The caches of a model's layers, a tuple, with the operations of `KVCache` on all of them."""

    __slots__ = ()

    def clone(self) -> ModelCache:
        """As `KVCache.clone`."""
        return ModelCache(cache.clone() for cache in self)

    def truncate(self, lengths: Numbers) -> ModelCache:
        """As `KVCache.truncate`; no layer is written unless all can be."""
        for cache in self:
            cache.lengths_to_keep(lengths)
        return ModelCache(cache.truncate(lengths) for cache in self)

    def select(self, rows: Numbers) -> ModelCache:
        """As `KVCache.select`."""
        return ModelCache(cache.select(rows) for cache in self)

    def repeat(self, n: int) -> ModelCache:
        """As `KVCache.repeat`."""
        return ModelCache(cache.repeat(n) for cache in self)

    def reset(self, rows: Numbers) -> ModelCache:
        """As `KVCache.reset`."""
        for cache in self:
            checks.cache_not_consumed(cache.consumed)
        return ModelCache(cache.reset(rows) for cache in self)

    def grow(self, max_length: int) -> ModelCache:
        """As `KVCache.grow`."""
        return ModelCache(cache.grow(max_length) for cache in self)


def consume(*caches: KVCache) -> None:
    """Mark caches as extended before their storage is written, all or none: of two threads one gets the error."""
    if torch.compiler.is_compiling():  # which cannot trace a lock
        _consume(caches)
    else:
        with _CONSUMING:
            _consume(caches)


def _consume(caches: tuple[KVCache, ...]) -> None:
    for cache in caches:
        checks.cache_not_consumed(cache.consumed)
    for cache in caches:
        cache.consumed = True


@torch.inference_mode(False)
def empty(
    config: AttentionConfig,
    batch_size: int,
    max_length: int,
    rolling: bool,
    dtype: torch.dtype,
    *,
    num_kv_heads: int,
    device: torch.device,
) -> KVCache:
    """A cache without tokens. num_kv_heads: fewer than the config's where a layer is sharded by heads."""
    slots = config.window if rolling and config.window is not None else max_length
    shape = (batch_size, num_kv_heads, slots)
    return KVCache(
        keys=torch.zeros(*shape, config.head_dim, dtype=dtype, device=device),
        values=torch.zeros(*shape, config.v_head_dim, dtype=dtype, device=device),
        length=torch.zeros(batch_size, dtype=torch.int64, device="cpu"),
        rope_length=max_length,
        rolling=rolling,
        written=torch.zeros(batch_size, dtype=torch.int64, device="cpu") if rolling else None,
    )


def _numbers(name: str, value: Numbers) -> Integer[Array, "..."]:
    """Integers on the CPU, from one, a sequence or a tensor."""
    numbers = value if isinstance(value, Array) else torch.as_tensor(value)
    if numbers.numel() == 0:
        return numbers.to("cpu", torch.int64)
    if not checks.is_integer_dtype(numbers):
        raise TypeError(f"{name}: expected an integer dtype, got {checks.dtype_name(numbers)}")
    return numbers.to("cpu", torch.int64)

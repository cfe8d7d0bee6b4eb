"""One step of decoding: what a cache gets, and what its new tokens attend to. SPEC 13."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor as Array

from gqa_spec import AttentionConfig, RopeConfig, checks
from gqa_torch import rope
from gqa_torch.cache import KVCache

Rope = tuple[RopeConfig, int, int]  # with rotary_dim and rope_length


@dataclass(eq=False)
class DecodeStep:
    """T new tokens for each row of a batch, the first count[b] of them real, after start[b] earlier ones.

    It holds what is the same for all layers of a model. common_start, common_count: the numbers that all rows are known
    to have in common, or None. real (B, T, 1): which tokens are real; None if all are.
    """

    T: int
    start: Integer[Array, "B"]
    count: Integer[Array, "B"]
    padded: bool
    device: torch.device
    tables: dict[Rope, tuple[Array, Array]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.end, self.written = self.start + self.count, self.start + self.count
        self.starts = known(self.start)
        self.common_start, self.common_count = common(self.start), common(self.count)
        token = torch.arange(self.T, device="cpu")
        self.positions = self.start[:, None] + token
        self.real = (token < self.count[:, None]).to(self.device)[..., None] if self.padded else None

    def starts_at(self, cache: KVCache) -> bool:
        """Whether a cache is known to have start[b] tokens, as all caches of a model do. Traced lengths are unknown."""
        return self.starts is not None and self.starts == known(cache.length)

    def cos_sin(self, settings: Rope, *, like: Array) -> tuple[Array, Array]:
        if settings not in self.tables:
            self.tables[settings] = rope.cos_sin(self.positions, *settings, like=like)
        return self.tables[settings]


@dataclass(eq=False)
class Extension:
    """A layer's part in a step: the cache that it extends, and then `new_cache`.

    It is an argument of `forward`, so that forward hooks run while decoding too.
    """

    cache: KVCache
    step: DecodeStep
    new_cache: KVCache | None = None

    def extended(self) -> KVCache:
        assert self.new_cache is not None
        return self.new_cache


def append(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], step: DecodeStep
) -> tuple[KVCache, Array, Array]:
    """The cache with each row's real tokens, and the keys and values that the new tokens attend to."""
    key, value = key.to(cache.keys.dtype), value.to(cache.values.dtype)
    if cache.rolling:
        keys, values = torch.cat([cache.keys, key], dim=2), torch.cat([cache.values, value], dim=2)
        for held, x in ((cache.keys, keys), (cache.values, values)):
            _roll(held, x, step)
        return replace(cache, length=step.end, written=step.written, consumed=False), keys, values
    fit = fits(cache, step)
    for held, x in ((cache.keys, key), (cache.values, value)):
        _write(held, x, step, fit)
    length = step.end if fit is None else torch.where(fit, step.end, cache.capacity + 1)
    end = cache.capacity if step.starts is None else max(step.starts, default=0) + step.T
    return replace(cache, length=length, consumed=False), cache.keys[:, :, :end], cache.values[:, :, :end]


def _roll(held: Float[Array, "B K C h"], x: Float[Array, "B K S h"], step: DecodeStep) -> None:
    """Keep the newest C of each row's C + count[b]."""
    C, count = held.shape[2], step.count
    if step.common_count is not None:
        held.copy_(x[:, :, step.common_count : step.common_count + C])
        return
    slots = (count[:, None] + torch.arange(C, device=count.device)).to(x.device)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    held.copy_(x[rows, :, slots].transpose(1, 2))


def _write(
    held: Float[Array, "B K C h"], x: Float[Array, "B K T h"], step: DecodeStep, fit: Bool[Array, "B"] | None
) -> None:
    """Write x's real tokens into the slots from start[b] on, but none into a full row."""
    C, start, stored_in_each = held.shape[2], step.common_start, step.common_count
    if start is not None and stored_in_each is not None:
        held[:, :, start : start + stored_in_each] = x if stored_in_each == step.T else x[:, :, :stored_in_each]
        return
    count = step.count if fit is None else step.count * fit
    token = torch.arange(min(x.shape[2], C), device="cpu")
    # all different; a slot in which nothing is stored gets its old content
    slots = ((step.start[:, None] + token) % C).to(x.device)
    stored = (token < count[:, None]).to(x.device)[..., None, None]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    held[rows, :, slots] = torch.where(stored, x[:, :, :C].transpose(1, 2), held[rows, :, slots])


def real_tokens(x: Array, lengths: Array | None) -> Integer[Array, "B"]:
    """How many of each row's tokens are real, T unless given; x is (B, T, ...)."""
    B, T = x.shape[:2]
    if lengths is None:
        return torch.full((B,), T, device="cpu")
    checks.cache_lengths(lengths, Array, B)
    checks.cache_lengths_in_chunk(known(lengths) or (), T)
    return lengths.to("cpu", torch.int64).clamp(0, T)


def check_free_slots(cache: KVCache, count: Integer[Array, "B"]) -> None:
    """Whether each row has slots for its new tokens, where the numbers can be read. A rolling cache has for any number,
    unless its length was changed by hand.
    """
    lengths, counts = known(cache.length), known(count)
    if lengths is None or counts is None:
        return
    if cache.written is not None:
        checks.cache_length_unchanged(lengths, cache.written.tolist())
    else:
        checks.free_slots(cache.capacity, lengths, counts)


def known(numbers: Integer[Array, "B"]) -> list[int] | None:
    """The numbers as a list, or None where they cannot be read: under torch.compile and vmap, or without data."""
    if torch.compiler.is_compiling():
        return None
    try:
        return numbers.tolist()
    except RuntimeError:
        return None


def common(numbers: Integer[Array, "B"]) -> int | None:
    """The number that all rows are known to have, or None."""
    rows = known(numbers)
    return rows[0] if rows and all(row == rows[0] for row in rows) else None


def fits(cache: KVCache, step: DecodeStep) -> Bool[Array, "B"] | None:
    """Which rows have free slots; a row that once had none never has. None where all have: a full row
    has raised where the lengths can be read."""
    if step.starts is not None:
        return None
    if cache.written is not None:
        return cache.length == cache.written
    return step.end <= cache.capacity


def kernel_arguments(cache: KVCache, config: AttentionConfig, step: DecodeStep) -> tuple[Array | None, Any, int | None]:
    """The kernel's mask, offset and chunk for the keys that `append` returns."""
    if not cache.rolling:
        return None, step.start if step.common_start is None else step.common_start, config.chunk
    T, device = step.T, step.device
    start = step.start.to(device)[:, None, None, None]
    query_position = start + torch.arange(T, device=device)[:, None]
    key_position = start - cache.capacity + torch.arange(cache.capacity + T, device=device)
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, not slots
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return visible, cache.capacity, None

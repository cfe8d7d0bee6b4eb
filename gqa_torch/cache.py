"""Key/value caches: keys after norm and RoPE, each row of the batch with a length of its own. SPEC 13.

Storage is written in place, so a cache is a handle: extending spends it and returns the next one on that storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor as Array

from gqa_spec import AttentionConfig, RopeConfig, checks
from gqa_torch import rope

Rope = tuple[RopeConfig, int, int]  # with rotary_dim and rope_length


@dataclass(eq=False)
class KVCache:
    """The keys and values of the tokens so far. Slots that hold no token are exactly 0.

    keys (B, K, C, H), values (B, K, C, Hv), length (B,): tokens seen so far, C + 1 once a row has overflowed under
    torch.compile. length stays on the CPU, so that no step waits for a device to tell it. A rolling cache holds the
    last C = window positions in order, the newest last; any other holds position j in slot j. rope_length fixes the
    frequencies that depend on the length. spent: extended already, and of no further use.
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
        return replace(self, keys=self.keys.clone(), values=self.values.clone(), length=self.length.clone())


def empty(
    config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: torch.dtype, device: torch.device
) -> KVCache:
    slots = config.window if rolling and config.window is not None else max_length
    shape = (batch_size, config.num_kv_heads, slots)
    return KVCache(
        keys=torch.zeros(*shape, config.head_dim, dtype=dtype, device=device),
        values=torch.zeros(*shape, config.v_head_dim, dtype=dtype, device=device),
        length=torch.zeros(batch_size, dtype=torch.int64, device="cpu"),
        rope_length=max_length,
        rolling=rolling,
    )


@dataclass(eq=False)
class Append:
    """T tokens for each row of a batch, the first count[b] of them real, on top of start[b] earlier ones: what all
    layers of a model have in common, worked out once.

    first, each: the start and the count that all rows are known to share, if they do. real (B, T, 1): None if all are.
    """

    T: int
    start: Integer[Array, "B"]
    count: Integer[Array, "B"]
    padded: bool
    device: torch.device
    tables: dict[Rope, tuple[Array, Array]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.end = self.start + self.count
        self.starts = known(self.start)
        self.first, self.each = common(self.start), common(self.count)
        token = torch.arange(self.T, device="cpu")
        self.positions = self.start[:, None] + token
        self.real = (token < self.count[:, None]).to(self.device)[..., None] if self.padded else None

    def serves(self, cache: KVCache) -> bool:
        """Whether a cache has as many tokens, as all of a model's do; of traced ones one cannot say."""
        return self.starts is not None and self.starts == known(cache.length)

    def cos_sin(self, settings: Rope, *, like: Array) -> tuple[Array, Array]:
        if settings not in self.tables:
            self.tables[settings] = rope.cos_sin(self.positions, *settings, like=like)
        return self.tables[settings]


def appended(
    cache: KVCache, key: Float[Array, "B K T H"], value: Float[Array, "B K T Hv"], step: Append
) -> tuple[KVCache, Array, Array]:
    """The cache with each row's real tokens, and the keys and values that those attend to."""
    key, value = key.to(cache.keys.dtype), value.to(cache.values.dtype)
    cache.spent = True
    if cache.rolling:
        keys, values = torch.cat([cache.keys, key], dim=2), torch.cat([cache.values, value], dim=2)
        for held, x in ((cache.keys, keys), (cache.values, values)):
            _roll(held, x, step)
        return replace(cache, length=step.end, spent=False), keys, values
    fit = fits(cache, step)
    for held, x in ((cache.keys, key), (cache.values, value)):
        _write(held, x, step, fit)
    length = step.end if fit is None else torch.where(fit, step.end, cache.capacity + 1)
    end = cache.capacity if step.starts is None else max(step.starts, default=0) + step.T
    return replace(cache, length=length, spent=False), cache.keys[:, :, :end], cache.values[:, :, :end]


def _roll(held: Float[Array, "B K C h"], x: Float[Array, "B K S h"], step: Append) -> None:
    """Keep the newest C of each row's C + count[b]."""
    C, each, count = held.shape[2], step.each, step.count
    if each is not None:
        held.copy_(x[:, :, each : each + C])
        return
    slots = (count[:, None] + torch.arange(C, device=count.device)).to(x.device)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    held.copy_(x[rows, :, slots].transpose(1, 2))


def _write(
    held: Float[Array, "B K C h"], x: Float[Array, "B K T h"], step: Append, fit: Bool[Array, "B"] | None
) -> None:
    """x's real tokens into the slots from start[b] on; those of a row that has no room nowhere."""
    C, first, each = held.shape[2], step.first, step.each
    if first is not None and each is not None:
        held[:, :, first : first + each] = x if each == step.T else x[:, :, :each]
        return
    count = step.count if fit is None else step.count * fit
    token = torch.arange(min(x.shape[2], C), device="cpu")
    # all different; where nothing is stored, what is there stays
    slots = ((step.start[:, None] + token) % C).to(x.device)
    stored = (token < count[:, None]).to(x.device)[..., None, None]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    held[rows, :, slots] = torch.where(stored, x[:, :, :C].transpose(1, 2), held[rows, :, slots])


def known(numbers: Integer[Array, "B"]) -> list[int] | None:
    """One number for each row, or None where they are being traced by torch.compile."""
    return None if torch.compiler.is_compiling() else numbers.tolist()


def common(numbers: Integer[Array, "B"]) -> int | None:
    """The number that all rows are known to have in common, if there is one."""
    rows = known(numbers)
    return rows[0] if rows and all(row == rows[0] for row in rows) else None


def fits(cache: KVCache, step: Append) -> Bool[Array, "B"] | None:
    """Which rows have room; a row that once had none never has. None for all: elsewhere than under torch.compile, one
    without has raised."""
    if cache.rolling or not torch.compiler.is_compiling():
        return None
    return step.end <= cache.capacity


def visibility(cache: KVCache, config: AttentionConfig, step: Append) -> dict[str, Any]:
    """Which of the keys that `appended` returns the new tokens may see, as the kernel's mask, offset and chunk."""
    if not cache.rolling:
        return {"mask": None, "offset": step.start if step.first is None else step.first, "chunk": config.chunk}
    T, device = step.T, step.device
    start = step.start.to(device)[:, None, None, None]
    query_position = start + torch.arange(T, device=device)[:, None]
    key_position = start - cache.capacity + torch.arange(cache.capacity + T, device=device)
    visible = key_position >= 0
    if config.chunk is not None:  # chunks count absolute positions, which a rolled slot has left behind
        visible = visible & (query_position // config.chunk == key_position // config.chunk)
    return {"mask": visible, "offset": cache.capacity, "chunk": None}

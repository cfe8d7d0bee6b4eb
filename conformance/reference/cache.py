"""Cached decoding token by token, around the reference layer: what a cache keeps, and at which positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.reference.layer import ReferenceLayer

Array = np.ndarray


class ReferenceCache:
    """One list of keys and one of values for each row of the batch; a rolling cache forgets all but the last W."""

    def __init__(self, layer: ReferenceLayer, batch_size: int, max_length: int, rolling: bool) -> None:
        self.layer, self.max_length, self.rolling = layer, max_length, rolling
        self.keys: list[list[Array]] = [[] for _ in range(batch_size)]
        self.values: list[list[Array]] = [[] for _ in range(batch_size)]
        self.length = [0] * batch_size

    def extend(self, x: Array, lengths: list[int]) -> Array:
        """x (B, T, D), of which lengths[b] tokens are real -> (B, T, D), 0 behind the real ones."""
        output = np.zeros(x.shape)
        for b, count in enumerate(lengths):
            output[b, :count] = self.row(b, x[b : b + 1], count)[0, :count]
        return output

    def row(self, b: int, x: Array, count: int) -> Array:
        real = x[:, : self.stored(count, x.shape[1])]
        places = self.places(b, real.shape[1])[None]
        q, k, v = self.layer.heads(real, real, real, places, places, self.max_length)
        before = list(zip(self.keys[b], self.values[b], strict=True))
        held = self.before_reading(before) + [(k[0, :, i], v[0, :, i]) for i in range(real.shape[1])]
        if not held:  # a row without a token so far
            return np.zeros(x.shape)
        keys, values = (np.stack([pair[i] for pair in held], axis=1)[None] for i in (0, 1))
        start = self.length[b]
        first = start - (len(held) - real.shape[1])  # the position of the oldest key that is held
        mask = self.same_chunk(start + np.arange(real.shape[1]), first + np.arange(len(held)))
        context, _ = self.layer.attended(q, keys, values, mask, offset=self.offset(b, start - first), chunk=None)
        kept = self.after_reading(held)
        self.keys[b], self.values[b] = [key for key, _ in kept], [value for _, value in kept]
        self.length[b] = start + count
        return self.layer.joined(context)

    def places(self, b: int, count: int) -> Array:
        """The positions at which new tokens are rotated."""
        return self.length[b] + np.arange(count)

    def offset(self, b: int, held: int) -> int:
        """The index of the first new query among the keys that are held."""
        return held

    def stored(self, count: int, given: int) -> int:
        """How many of the given tokens are stored."""
        return count

    def before_reading(self, held: list[Any]) -> list[Any]:
        return held

    def after_reading(self, held: list[Any]) -> list[Any]:
        return held[-self.slots() :] if self.rolling else held

    def slots(self) -> int:
        assert self.layer.config.window is not None
        return self.layer.config.window

    def same_chunk(self, queries: Array, keys: Array) -> Any:
        chunk = self.layer.config.chunk
        return None if chunk is None else queries[:, None] // chunk == keys // chunk

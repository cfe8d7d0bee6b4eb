"""Mutants of caches: each makes some split of a sequence differ from the whole pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.reference.cache import ReferenceCache

Array = np.ndarray


class RotatedFromZero(ReferenceCache):
    """Each chunk is rotated as if it began at position 0."""

    def places(self, b: int, count: int) -> Array:
        return np.arange(count)


class FirstRowsLengthForAll(ReferenceCache):
    """One length for the whole batch."""

    def places(self, b: int, count: int) -> Array:
        return super().places(0, count)


class ChunkStartsAtZero(ReferenceCache):
    """Causal from position 0 in every chunk: top-left where keys were held before."""

    def offset(self, b: int, held: int) -> int:
        return 0


class AttendsToOneTooMany(ReferenceCache):
    """Queries are one position too late: each attends to the next token of its chunk."""

    def offset(self, b: int, held: int) -> int:
        return held + 1


class NewTokenNotAttended(ReferenceCache):
    """Read before it is written: a query does not attend to itself."""

    def offset(self, b: int, held: int) -> int:
        return max(held - 1, 0)


class PaddingStored(ReferenceCache):
    """The padding behind a row's real tokens is kept too."""

    def stored(self, count: int, given: int) -> int:
        return given


class WrittenBeforeRead(ReferenceCache):
    """A rolling cache whose new tokens push out old ones that their own first queries still attend to."""

    def before_reading(self, held: list[Any]) -> list[Any]:
        return held[2:] if self.rolling else held


class OneSlotShort(ReferenceCache):
    """A rolling cache of W - 2 positions: one fewer than a new token attends to."""

    def slots(self) -> int:
        return max(super().slots() - 2, 1)


class LastTokenOverwritten(ReferenceCache):
    """Written one slot early: the last token held is lost."""

    def before_reading(self, held: list[Any]) -> list[Any]:
        return held[:-1] + held[-2:-1] if len(held) > 1 else held


class ChunksCountSlots(ReferenceCache):
    """Llama 4's chunks counted from the first slot that is held, not from position 0."""

    def same_chunk(self, queries: Array, keys: Array) -> Any:
        return super().same_chunk(queries - keys[0], keys - keys[0])


class FrequenciesOfTheChunk(ReferenceCache):
    """Frequencies that depend on the length, computed from how many tokens were seen so far."""

    def row(self, b: int, x: Array, count: int) -> Array:
        self.max_length = self.length[b] + count
        return super().row(b, x, count)

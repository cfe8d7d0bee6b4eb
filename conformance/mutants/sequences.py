"""Mutants of packed and paged attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.reference.sequences import ReferencePacked, ReferencePaged

Array = np.ndarray


class AllKeysSeen(ReferencePacked):
    """Ends of sequences ignored among keys: every query attends to all sequences."""

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        return slice(0, total)


class EarlierSequencesSeen(ReferencePacked):
    """Causal over the packed array: a sequence attends to those before it."""

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        return slice(0, int(key_starts[b + 1]))


class OneKeyTooMany(ReferencePacked):
    """The end of a sequence taken as included: the next one's first key is seen."""

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        return slice(int(key_starts[b]), min(int(key_starts[b + 1]) + 1, total))


class QueryStartsForKeys(ReferencePacked):
    """One table of starts, that of the queries, for both."""

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        return slice(*(min(int(query_starts[i]), total) for i in (b, b + 1)))


class EndsOnBlocksOf16(ReferencePacked):
    """The keys of a sequence up to the end of its last block of 16, whoever owns the rest."""

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        start, end = int(key_starts[b]), int(key_starts[b + 1])
        return slice(start, min(start + -(-(end - start) // 16) * 16, total))


class TopLeftInEachSequence(ReferencePacked):
    """Query i of a sequence at position i, not at S - T + i."""

    def offset(self, T: int, S: int) -> int:
        return 0


class TiledHeadsOfSequences(ReferencePacked):
    """Query head n reads KV head n % K."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n % K


class ScaleOfSequencesIgnored(ReferencePacked):
    """H ** -0.5 whatever scale is given."""

    def scale(self, H: int, settings: Any) -> float:
        return float(H**-0.5)


class EmptySequenceIsNaN(ReferencePacked):
    """A query without a key divides 0 by 0."""

    def average(self, scores: Array, sink: float, value: Array) -> Array:
        found = super().average(scores, sink, value)
        return np.where(np.isneginf(scores).all(-1, keepdims=True), np.nan, found)


class WindowOfSequencesOneMore(ReferencePacked):
    """A window of W sees W + 1 keys."""

    def visible(self, T: int, S: int, settings: Any) -> Array:
        wider = None if settings.get("window") is None else settings["window"] + 1
        return super().visible(T, S, settings | {"window": wider})


class StorageOrder(ReferencePaged):
    """The table is not read: a sequence's blocks are the first ones in memory."""

    def blocks(self, tables: Array, b: int) -> Array:
        return np.arange(tables.shape[1])


class BlocksFollowTheFirst(ReferencePaged):
    """Only a sequence's first block is looked up; the others follow it in memory."""

    def blocks(self, tables: Array, b: int) -> Array:
        return (tables[b, 0] + np.arange(tables.shape[1])) % (tables.max() + 1)


class FirstRowsTableForAll(ReferencePaged):
    """One table for the whole batch."""

    def blocks(self, tables: Array, b: int) -> Array:
        return tables[0]


class LengthsIgnored(ReferencePaged):
    """Every slot of a sequence's blocks is read, behind its length too."""

    def length(self, length: int, block: int) -> int:
        return -(-length // block) * block


class LengthOneMore(ReferencePaged):
    """Lengths taken as the index of the last token: one slot too many is read."""

    def length(self, length: int, block: int) -> int:
        return length + 1


class LengthOneLess(ReferencePaged):
    """The last token is not read."""

    def length(self, length: int, block: int) -> int:
        return max(length - 1, 0)


class LastBlockLost(ReferencePaged):
    """Whole blocks only: what is in a last, partly filled block is not read."""

    def length(self, length: int, block: int) -> int:
        return length // block * block


class BlocksOf16(ReferencePaged):
    """Blocks of 16 slots whatever the cache has."""

    def gathered(self, cache: Array, tables: Array, b: int, length: int) -> Array:
        at, flat = np.arange(length), cache.reshape(-1, *cache.shape[2:])
        return flat[(tables[b, np.minimum(at // 16, tables.shape[1] - 1)] * 16 + at % 16) % len(flat)]


class SlotsPastLengthMultiplied(ReferencePaged):
    """Slots behind a length get the weight 0, and 0 * NaN is NaN."""

    def gathered(self, cache: Array, tables: Array, b: int, length: int) -> Array:
        blocks = cache[tables[b]].reshape(-1, *cache.shape[2:])
        rest = blocks[length : -(-length // cache.shape[1]) * cache.shape[1]]
        return super().gathered(cache, tables, b, length) + 0 * rest.sum(axis=0)


class TopLeftInTheCache(ReferencePaged):
    """New queries at positions 0, 1, ..., not at the end of the cache."""

    def offset(self, T: int, S: int) -> int:
        return 0

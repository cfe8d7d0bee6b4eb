"""Cases for inference kernels: sequences of unequal lengths in one array, and keys in the blocks of a paged cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import numpy as np

import gqa_numpy
from conformance.cases.inputs import DTYPES, Call

Array = np.ndarray
Lengths = tuple[tuple[int, int], ...]  # (T, S) of each sequence
Kind = Literal["packed", "paged"]
SPARE = 3  # blocks that are nobody's
CAUSAL: dict[str, Any] = {"causal": True}
NONE: dict[str, Any] = {}
ROW = {"packed": "packed sequences", "paged": "paged cache"}


@dataclass(frozen=True)
class SequenceCase:
    """lengths: (T, S) of each sequence. block: slots of a block. shared: sequences 0 and 1 have their first block in
    common. poisoned: a sequence of NaN, whose own output is not compared. behind: what fills the slots past a length
    and the blocks of nobody, finite numbers unless poison.
    """

    name: str
    clause: int
    guards: str
    kind: Kind
    lengths: Lengths
    settings: Mapping[str, Any] = field(default_factory=dict)
    block: int = 16
    shared: bool = False
    poisoned: int | None = None
    behind: Literal["numbers", "poison"] = "numbers"
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 8
    v_head_dim: int = 5

    @property
    def full_name(self) -> str:
        return f"{ROW[self.kind]} / {self.name}"


@dataclass(frozen=True)
class Sequences:
    """The numbers of a case. query (total T, N, H), key (total S, K, H), value (total S, K, Hv); starts of each
    sequence (B + 1,) among queries and among keys.
    """

    query: Array
    key: Array
    value: Array
    query_starts: Array
    key_starts: Array
    settings: dict[str, Any]

    def of(self, b: int) -> Call:
        """One sequence as a batch of one row."""
        (t0, t1), (s0, s1) = self.query_starts[b : b + 2], self.key_starts[b : b + 2]
        parts = self.query[t0:t1], self.key[s0:s1], self.value[s0:s1]
        query, key, value = (x.swapaxes(0, 1)[None] for x in parts)
        return Call(query, key, value, None, self.settings)

    @property
    def count(self) -> int:
        return len(self.query_starts) - 1


@dataclass(frozen=True)
class Pages:
    """key (blocks, block, K, H), value (blocks, block, K, Hv), tables (B, blocks of the longest), lengths (B,)."""

    key: Array
    value: Array
    tables: Array
    lengths: Array


def sequences(case: SequenceCase, dtype: str) -> Sequences:
    """Random numbers, drawn from the case's name."""
    rng = np.random.default_rng(crc32(case.full_name.encode()))
    T, S = (np.array([pair[i] for pair in case.lengths]) for i in (0, 1))
    query = rng.normal(size=(T.sum(), case.num_heads, case.head_dim))
    key = rng.normal(size=(S.sum(), case.num_kv_heads, case.head_dim))
    value = rng.normal(size=(S.sum(), case.num_kv_heads, case.v_head_dim))
    starts = [np.concatenate([[0], np.cumsum(x)]) for x in (T, S)]
    if case.shared:
        for x in (key, value):
            x[S[0] : S[0] + case.block] = x[: case.block]
    if case.poisoned is not None:
        first, end = starts[1][case.poisoned : case.poisoned + 2]
        key[first:end], value[first:end] = np.nan, np.inf
    settings = dict(case.settings)
    if settings.pop("sinks", False):
        settings["sinks"] = rng.normal(size=case.num_heads).astype(DTYPES[dtype])
    query, key, value = (x.astype(DTYPES[dtype]) for x in (query, key, value))
    query_starts, key_starts = (x.astype(np.int32) for x in starts)
    return Sequences(query, key, value, query_starts, key_starts, settings)


def pages(case: SequenceCase, found: Sequences) -> Pages:
    """The keys in blocks of a random order, with a few blocks that are nobody's. A table's unused places name one."""
    rng = np.random.default_rng(crc32(case.name.encode()))
    lengths = np.diff(found.key_starts)
    needed = -(-lengths // case.block)
    order = rng.permutation(needed.sum() + SPARE)
    nobodys, taken = order[:SPARE], iter(order[SPARE:])
    tables = np.full((len(lengths), max(1, needed.max())), nobodys[0])
    for b, count in enumerate(needed):
        tables[b, :count] = [next(taken) for _ in range(count)]
    if case.shared:
        tables[1, 0] = tables[0, 0]
    held = []
    for x in (found.key, found.value):
        blocks = rng.normal(size=(len(order), case.block, *x.shape[1:])).astype(x.dtype) * 3
        if case.behind == "poison":
            blocks[:, ::2], blocks[:, 1::2] = np.nan, np.inf
        for b, length in enumerate(lengths):
            at = np.arange(length)
            blocks[tables[b, at // case.block], at % case.block] = x[found.key_starts[b] : found.key_starts[b + 1]]
        held.append(blocks)
    return Pages(held[0], held[1], tables.astype(np.int32), lengths.astype(np.int32))


def expected(found: Sequences, dtype: str) -> Array:
    """What the NumPy backend gives for each sequence by itself: (total T, N, Hv)."""
    outputs = []
    for b in range(found.count):
        call = found.of(b)
        given: dict[str, Any] = dict(call.keywords)
        given |= {name: x.astype(DTYPES[dtype]) for name, x in given.items() if isinstance(x, Array)}
        query, key, value = (x.astype(DTYPES[dtype]) for x in call.arguments[:3])
        shape = (*query.shape[:3], value.shape[3])
        if 0 in (query.shape[2], key.shape[2]):
            output = np.zeros(shape, DTYPES[dtype])
        else:
            output = gqa_numpy.grouped_query_attention(query, key, value, **given)[0]
        outputs.append(output[0].swapaxes(0, 1))
    return np.concatenate(outputs)


def compared(case: SequenceCase, found: Sequences, output: Array) -> Array:
    """Without the rows of a sequence of NaN."""
    if case.poisoned is None or len(output) != found.query_starts[-1]:
        return output
    first, end = found.query_starts[case.poisoned : case.poisoned + 2]
    return np.delete(output, slice(first, end), axis=0)


def _packed(name: str, clause: int, guards: str, lengths: Lengths, settings: Any = NONE, **more: Any) -> SequenceCase:
    return SequenceCase(name, clause, guards, "packed", lengths, settings, **more)


def _paged(name: str, clause: int, guards: str, lengths: Lengths, settings: Any = NONE, **more: Any) -> SequenceCase:
    return SequenceCase(name, clause, guards, "paged", lengths, settings, **more)


def _alone(*lengths: int) -> Lengths:
    """Sequences that attend to themselves."""
    return tuple((length, length) for length in lengths)


def _decoding(*lengths: int, queries: int = 1) -> Lengths:
    return tuple((queries, length) for length in lengths)


EVERYTHING = {"causal": True, "window": 6, "softcap": 0.9, "scale": 0.7, "sinks": True}
MQA, MHA = {"num_heads": 5, "num_kv_heads": 1}, {"num_heads": 3, "num_kv_heads": 3}
PACKED = (
    _packed("unequal lengths", 4, "keys of another sequence", _alone(7, 3, 12)),
    _packed("unequal lengths, causal", 4, "positions counted from the first token of all", _alone(7, 3, 12), CAUSAL),
    _packed("more heads than KV heads", 1, "heads in another order", _alone(5, 9), {}, num_heads=8),
    _packed("one KV head", 1, "an axis of one", _alone(5, 9), CAUSAL, **MQA),
    _packed("as many KV heads as heads", 1, "a path for no groups", _alone(5, 9), CAUSAL, **MHA),
    _packed("sequences of 0 and 1 tokens", 5, "starts that are equal", _alone(0, 5, 1, 0, 0, 4, 1, 0), CAUSAL),
    _packed("ends off blocks of 16", 4, "a block that spans two sequences", _alone(17, 15, 33, 16, 1), CAUSAL),
    _packed("past blocks of 64 and 128", 4, "a second block of one sequence", _alone(130, 64, 257), CAUSAL, **MHA),
    _packed(
        "fewer queries than keys, causal", 4, "top-left alignment in a sequence", ((3, 7), (1, 12), (5, 5), (4, 19)),
        CAUSAL,
    ),
    _packed("more queries than keys, causal", 5, "queries without a key", ((7, 3), (2, 2), (9, 4)), CAUSAL),
    _packed("other lengths of queries than of keys", 4, "one table of starts for both", ((3, 7), (6, 2), (5, 9))),
    _packed("a sequence without keys", 5, "0 / 0", ((3, 0), (2, 6), (1, 0), (4, 4))),
    _packed("a window", 4, "a window over the end of a sequence", ((9, 9), (4, 11), (2, 2)), CAUSAL | {"window": 4}),
    _packed("a softcap", 2, "a softcap that is ignored", _alone(7, 3, 12), {"softcap": 0.9}),
    _packed("a scale", 2, "H ** -0.5 whatever is given", _alone(7, 3, 12), {"scale": 0.7}),
    _packed("sinks", 8, "sinks of another head", _alone(7, 0, 12), CAUSAL | {"sinks": True}),
    _packed("everything", 4, "settings that meet", ((9, 9), (4, 11), (2, 2), (6, 1)), EVERYTHING),
    _packed("a sequence of NaN", 6, "0 * NaN over the end of a sequence", _alone(7, 5, 9), CAUSAL, poisoned=1),
    _packed("equal lengths", 4, "a path for one length", _alone(8, 8, 8), CAUSAL),
    _packed("one sequence", 4, "a path for one sequence", _alone(11), CAUSAL),
)  # fmt: skip
PAGED = (
    _paged("one query", 13, "blocks in the order of storage", _decoding(37, 20, 50), CAUSAL),
    _paged("one query, not causal", 13, "a length that only causal hides", _decoding(37, 20, 50)),
    _paged("lengths of whole blocks", 13, "one block too many or too few", _decoding(16, 48, 32), CAUSAL),
    _paged("lengths around a block's end", 13, "an index that is one off", _decoding(15, 17, 1, 33), CAUSAL),
    _paged("blocks of 5", 13, "a block size that is a power of two", _decoding(12, 5, 23, 1), CAUSAL, block=5),
    _paged("blocks of 1", 13, "one token a block", _decoding(6, 3), CAUSAL, block=1),
    _paged("a block of two sequences", 13, "a block of one owner", _decoding(37, 40), CAUSAL, shared=True),
    _paged("poison behind the lengths", 6, "0 * NaN past a length", _decoding(37, 20, 3), CAUSAL, behind="poison"),
    _paged(
        "poison behind the lengths, four queries", 6, "0 * NaN past a length", _decoding(37, 20, 4, queries=4), CAUSAL,
        behind="poison",
    ),
    _paged("four queries", 4, "top-left alignment in a sequence", _decoding(37, 20, 4, queries=4), CAUSAL),
    _paged("an empty cache", 5, "0 / 0", _decoding(0, 20, 0), CAUSAL),
    _paged("more queries than keys", 5, "queries without a key", _decoding(2, 20, queries=4), CAUSAL),
    _paged("a window", 4, "a window counted from a block's start", _decoding(37, 20, 3), CAUSAL | {"window": 7}),
    _paged(
        "a window of four queries", 4, "the last query's window for all", _decoding(37, 20, 8, queries=4),
        CAUSAL | {"window": 7},
    ),
    _paged("a softcap", 2, "a softcap that is ignored", _decoding(37, 20), CAUSAL | {"softcap": 0.9}),
    _paged("a scale", 2, "H ** -0.5 whatever is given", _decoding(37, 20), CAUSAL | {"scale": 0.7}),
    _paged("sinks", 8, "sinks of another head", _decoding(37, 0, 20), CAUSAL | {"sinks": True}),
    _paged("everything", 4, "settings that meet", _decoding(37, 20, 9, queries=3), EVERYTHING),
    _paged("one KV head", 1, "an axis of one", _decoding(37, 20), CAUSAL, **MQA),
    _paged("as many KV heads as heads", 1, "a path for no groups", _decoding(37, 20), CAUSAL, **MHA),
    _paged("more than 512 keys", 13, "a second part of the keys", _decoding(530, 257, 1), CAUSAL, **MHA),
    _paged("queries of unequal lengths", 4, "queries of another sequence", ((3, 37), (1, 20), (5, 5), (0, 9)), CAUSAL),
)  # fmt: skip
CASES = {"packed": PACKED, "paged": PAGED}

"""Why a case fails, by name: the alternative, or the pair of alternatives, that reproduces the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from conformance.cases.compare import error_of
from conformance.dialects.conventions import CONVENTION, SPEC, Dialect, named, single_dialects

Array = np.ndarray
Answer = tuple[Array, Array | None]
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
ROUNDED: Dialect = frozenset({("float64", "float32 inside")})


def explain(in_dialect: Callable[[Dialect], Answer], got: Answer, dtype: str, clause: int) -> str:
    """The dialect that reproduces `got`, in words; empty where none does. in_dialect computes the same case, which is
    there to check a clause of SPEC.md: where several reproduce it, one of that clause is named.
    """
    tried = []
    for dialect, answer in _candidates(in_dialect, TOLERANCE[dtype], clause):
        if _same(got, answer, TOLERANCE[dtype]):
            return named(dialect)
        tried.append((dialect, answer))
    if dtype == "float64":
        for dialect, answer in tried:
            if _same(got, answer, TOLERANCE["float32"]):
                return named(dialect | ROUNDED)
    return ""


def _candidates(
    in_dialect: Callable[[Dialect], Answer], tolerance: float, clause: int
) -> Iterator[tuple[Dialect, Answer]]:
    """The specification, every alternative that changes the case, and every pair of those that are no slips."""
    expected = in_dialect(SPEC)
    yield SPEC, expected
    relevant = []
    for dialect in sorted(single_dialects(), key=lambda d: all(CONVENTION[name].clause != clause for name, _ in d)):
        answer = in_dialect(dialect)
        if not _same(answer, expected, tolerance):
            if not any(CONVENTION[name].choice(choice).slip for name, choice in dialect):
                relevant.append(dialect)
            yield dialect, answer
    for one, other in combinations(relevant, 2):
        if {name for name, _ in one}.isdisjoint(name for name, _ in other):
            yield one | other, in_dialect(one | other)


def _same(a: Answer, b: Answer, tolerance: float) -> bool:
    return all(
        x.shape == y.shape and error_of(x, y) <= tolerance
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None
    )

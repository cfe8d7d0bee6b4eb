"""Why cases fail, by name: the fewest dialects that reproduce what failed and predict what passed.

A dialect that would change a case which the target passes is no explanation, however well it fits one that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from conformance.cases.compare import error_of
from conformance.dialects.conventions import CONVENTION, SPEC, Dialect, named, single_dialects
from conformance.dialects.of_case import Answer, InDialect

Array = np.ndarray
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
ROUNDED: Dialect = frozenset({("float64", "float32 inside")})
ROUNDING = "right but for rounding"
LARGEST = 200_000  # pairs of a query and a key: larger cases are only held against what explains smaller ones
SECONDS = 15.0


@dataclass(eq=False)
class Answered:
    """One case in one dtype that a target has answered. feature: what it switches on, in which cases are alike. size:
    pairs of a query and a key. got: its answer where that is wrong, None where it passed. bare: it
    returns no weights. lengths: T and S.
    """

    feature: str
    dtype: str
    clause: int
    size: int
    in_dialect: InDialect
    got: Answer | None = None
    bare: bool = False
    lengths: tuple[int, int] = (0, 0)
    known: dict[Dialect, Answer] = field(default_factory=dict, repr=False)

    def answer(self, dialect: Dialect) -> Answer:
        if dialect not in self.known:
            output, weights = self.in_dialect(dialect)
            self.known[dialect] = output, None if self.bare else weights
        return self.known[dialect]

    def changed_by(self, dialect: Dialect) -> bool:
        """Whether a dialect gives something else than the specification, by more than the case's bound."""
        tolerance = 1e-12 if dialect == ROUNDED else TOLERANCE[self.dtype]
        return not _same(self.answer(dialect), self.answer(SPEC), tolerance)

    def reproduced_by(self, dialect: Dialect) -> bool:
        rounds = self.dtype == "float64" and dialect >= ROUNDED
        tolerance = TOLERANCE["float32" if rounds else self.dtype]
        return self.got is not None and _same(self.got, self.answer(dialect), tolerance)


@dataclass(frozen=True)
class Scope:
    """Sizes to which a fault may be confined. words: what is said after the dialect's name."""

    words: str
    holds: Callable[[Answered], bool]


SCOPES = (
    Scope("with one query", lambda a: a.lengths[0] == 1),  # a path of its own for decoding
    Scope("with more than 64 keys", lambda a: a.lengths[1] > 64),  # a second block of keys
)


def explanations(answered: list[Answered], seconds: float = SECONDS) -> list[str]:
    """For each case what explains it, in words; empty for one that passed and where nothing does.

    Args:
        answered: every case that the target answered, right or wrong.
        seconds: how long names are looked for; cases that are left then are held against the names found.
    """
    search = _Search([a for a in answered if a.got is None and a.size < LARGEST], time.monotonic() + seconds)
    failing = sorted((a for a in answered if a.got is not None), key=lambda a: a.size)
    first_of: dict[tuple[str, str], Answered] = {}
    for a in failing:
        first_of.setdefault((a.feature, a.dtype), a)
    small = [a for a in first_of.values() if a.size < LARGEST]
    found = search.cover(small)
    found.sort(key=lambda d: -sum(a.reproduced_by(d) for a in small))
    return ["" if a.got is None else search.words(a, found) for a in answered]


@dataclass
class _Search:
    """passing: what an explanation must leave as it is. deadline: when looking for names ends. scoped: the dialects
    that predict what passed only for cases of some sizes.
    """

    passing: list[Answered]
    deadline: float
    refuted: dict[Dialect, bool] = field(default_factory=dict)
    scoped: dict[Dialect, Scope] = field(default_factory=dict)

    def cover(self, failing: list[Answered]) -> list[Dialect]:
        """The fewest dialects that reproduce the failing cases: at each step the one that reproduces most."""
        fits = {id(a): [d for d in self._singles(a) if self._predicts(d)] for a in failing}
        found: list[Dialect] = []
        left = [a for a in failing if not a.reproduced_by(SPEC)]
        while left:
            counted: dict[Dialect, int] = {}
            for a in left:
                for dialect in fits[id(a)]:
                    counted[dialect] = counted.get(dialect, 0) + 1
            if not counted:
                break
            best = max(counted, key=lambda d: counted[d])  # the first of equals: of the case's own clause
            found.append(best)
            left = [a for a in left if best not in fits[id(a)]]
        found += self._confined(left)
        for a in left:
            if not any(self._explains(d, a) for d in found):
                pair = next((d for d in self._pairs(a, found) if a.reproduced_by(d) and self._predicts(d)), None)
                found += [pair] if pair is not None else []
        return found

    def _confined(self, failing: list[Answered]) -> list[Dialect]:
        """Dialects that explain cases of some sizes alone: they leave what passed at these sizes as it is."""
        for scope in SCOPES:
            here = [p for p in self.passing if scope.holds(p)]
            for a in failing:
                if not scope.holds(a) or any(self._explains(d, a) for d in self.scoped):
                    continue
                for dialect in self._singles(a):
                    if dialect not in self.scoped and not any(p.changed_by(dialect) for p in here):
                        self.scoped[dialect] = scope
                        break
        return list(self.scoped)

    def _explains(self, dialect: Dialect, a: Answered) -> bool:
        """Whether it reproduces a case of a size to which it applies."""
        scope = self.scoped.get(dialect)
        return (scope is None or scope.holds(a)) and a.reproduced_by(dialect)

    def _singles(self, a: Answered) -> Iterator[Dialect]:
        """The single alternatives that reproduce a case, those of its clause first."""
        for dialect in _by_clause(single_dialects(), a.clause):
            if time.monotonic() > self.deadline:
                return
            if a.reproduced_by(dialect) and a.changed_by(dialect):
                yield dialect
        if a.dtype == "float64" and a.reproduced_by(ROUNDED):
            yield ROUNDED

    def _pairs(self, a: Answered, found: list[Dialect]) -> Iterator[Dialect]:
        """Two alternatives at once, with one that is known first; of slips no two are looked for."""
        relevant = [d for d in _by_clause(single_dialects(), a.clause) if a.changed_by(d)]
        common = [d for d in relevant if not _is_slip(d)]
        for one, other in [*((d, other) for d in found for other in relevant), *combinations(common, 2)]:
            if time.monotonic() > self.deadline:
                return
            if {name for name, _ in one}.isdisjoint(name for name, _ in other):
                yield one | other

    def _predicts(self, dialect: Dialect) -> bool:
        """Whether no case that passed would have failed in the dialect."""
        if dialect not in self.refuted:
            self.refuted[dialect] = any(
                a.changed_by(dialect) for a in self.passing if dialect != ROUNDED or a.dtype == "float64"
            )
        return not self.refuted[dialect]

    def words(self, a: Answered, found: Iterable[Dialect]) -> str:
        assert a.got is not None
        for dialect in found:
            if self._explains(dialect, a) and not any(a.reproduced_by(dialect - {part}) for part in dialect):
                scope = self.scoped.get(dialect)
                return named(dialect) if scope is None else f"{named(dialect)}, {scope.words}"
        expected = a.answer(SPEC)
        if _same(a.got, expected, TOLERANCE["float32" if a.dtype == "float64" else a.dtype]):
            return ROUNDING
        if a.dtype == "float64":  # what float32 adds to a name
            for dialect in found:
                if _same(a.got, a.answer(dialect), TOLERANCE["float32"]):
                    return named(dialect | ROUNDED) if self._predicts(ROUNDED) else named(dialect)
        return relation(a.got[0], expected[0], TOLERANCE[a.dtype])


def relation(got: Array, expected: Array, tolerance: float) -> str:
    """A factor or a shift that makes what is expected of what was got, in words; empty where there is neither."""
    if got.shape != expected.shape or not np.isfinite(got).all() or not np.isfinite(expected).all():
        return ""
    x, y = (np.asarray(z, np.float64) for z in (expected, got))
    if not y.any():
        return "0 everywhere" if x.any() else ""
    factor = float((x * y).sum() / max(float((x * x).sum()), 1e-300))
    if error_of(factor * x, y) <= 10 * tolerance and abs(factor - 1) > 10 * tolerance:
        return f"times {factor:.4g}"
    shift = float((y - x).mean())
    if error_of(x + shift, y) <= 10 * tolerance and abs(shift) > 10 * tolerance:
        return f"{shift:+.4g} everywhere"
    return ""


def _by_clause(dialects: list[Dialect], clause: int) -> list[Dialect]:
    return sorted(dialects, key=lambda d: all(CONVENTION[name].clause != clause for name, _ in d))


def _is_slip(dialect: Dialect) -> bool:
    return any(CONVENTION[name].choice(choice).slip for name, choice in dialect)


def _same(a: Answer, b: Answer, tolerance: float) -> bool:
    pairs: list[tuple[Any, Any]] = list(zip(a, b, strict=True))
    return all(x.shape == y.shape and error_of(x, y) <= tolerance for x, y in pairs if x is not None and y is not None)

"""One target, judged in processes of its own: nothing that it does ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol

from conformance.cases import sequences, states
from conformance.cases.caches import CacheCase
from conformance.cases.sequences import SequenceCase
from conformance.cases.states import STATES, StateCase
from conformance.cases.table import ALL_FEATURES, OTHER_ROWS, Case, kernel_cases, layer_cases
from conformance.checks import caches as cache_checks
from conformance.checks import sequences as sequence_checks
from conformance.checks.check import QUANTITIES, Check, quantities
from conformance.checks.states import state_checks
from conformance.checks.targets import target_checks
from conformance.dialects.conventions import CONVENTIONS
from conformance.dialects.detect import Finding, findings
from conformance.dialects.explain import LARGEST, SECONDS, Answered, explanations
from conformance.dialects.of_case import cache_in_dialects, in_dialects
from conformance.targets import PUBLIC, Limits, NotATarget, Target, TargetClass, Unsupported, fit
from conformance.targets.fit import fit_cache
from conformance.targets.frameworks import framework, quick_to_compile, set_x64
from conformance.targets.sequences import SequenceFunction
from conformance.targets.worker import Stopped, Worker

SuiteCase = Case | CacheCase | StateCase | SequenceCase
TIME_LIMIT = 30.0  # seconds for one case
HEAD_START = 5.0  # a second process must import the target again, which a short run does not pay back
PROFILES = ("quick", "kernels", "full")
MODERATE = 1_000_000  # pairs of a query and a key: what a quick run leaves out is larger


@dataclass(frozen=True)
class Options:
    """How a target is judged.

    Attributes:
        arrays: whose arrays a function takes; None where its class shows it.
        changes: fields of `Limits` that hold whatever the target declares.
        dtypes: those that it is judged in; None for those that it takes of float64 and float32, or else of 16 bit.
        profile: "quick" is every feature once in one dtype; "kernels" leaves the other groupings of a class out;
            "full" is everything.
        case: a pattern of names (`*` for anything); None for all.
        limit: seconds that a case may take.
    """

    arrays: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] | None = None
    profile: str = "full"
    case: str | None = None
    limit: float = TIME_LIMIT


@dataclass(frozen=True)
class Judged:
    """checks: one for each case, dtype and quantity. notes: what the target always does, as the first call showed."""

    checks: list[Check]
    notes: tuple[str, ...] = ()


def _ignored(done: int, total: int) -> None:
    """Reports no progress."""


def judge(path: str, options: Options = Options(), done: Callable[[int, int], None] = _ignored) -> Judged:
    """Every case in every dtype that the target takes, on two processes.

    Args:
        path: MODULE:NAME, or the name of a public implementation.
        options: how it is judged.
        done: is told how many of how many cases are finished.

    Raises:
        NotATarget: with one sentence, before any work is done.
    """
    quick_to_compile()
    with Worker(path, options.arrays, options.limit, options.changes) as first:
        run = _Run(path, options, first, done)
        run.all()
        found = [run.found[number] for number in range(len(run.items))]
        return Judged(explained(path, list(chain.from_iterable(found)), run.items, first), first.notes)


class _Run:
    """The cases that wait, and the checks of those that are done. A second process helps after a while."""

    def __init__(self, path: str, options: Options, first: Worker, done: Callable[[int, int], None]) -> None:
        self.items = items_of(path, options, first.kind, first.limits)
        self.path, self.options, self.workers, self.done = path, options, [first], done
        self.found: dict[int, list[Check]] = {}
        self.waiting: SimpleQueue[int] = SimpleQueue()
        self.finished = Event()
        for number in range(len(self.items)):
            self.waiting.put(number)

    def all(self) -> None:
        """Ends within a second of an interrupt, and leaves no process behind."""
        helper = Thread(target=self._help, daemon=True)
        helper.start()
        try:
            self._work(self.workers[0])
            self.finished.set()
            helper.join()
        except BaseException:
            self.finished.set()
            self._drain()
            for worker in self.workers:
                worker.stop()
            raise

    def _help(self) -> None:
        if self.finished.wait(HEAD_START):
            return
        second = Worker(self.path, self.options.arrays, self.options.limit, self.options.changes)
        self.workers.append(second)
        with second:
            self._work(second)

    def _work(self, worker: Worker) -> None:
        while True:
            try:
                number = self.waiting.get_nowait()
            except Empty:
                return
            case, dtype = self.items[number]
            self.found[number] = checks_of(worker, self.path, case, dtype)
            self.done(len(self.found), len(self.items))

    def _drain(self) -> None:
        while not self.waiting.empty():
            self.waiting.get_nowait()


def items_of(path: str, options: Options, kind: str, limits: Limits) -> list[tuple[SuiteCase, str]]:
    """The cases, each with a dtype. Raises NotATarget where a pattern matches none."""
    dtypes = options.dtypes or limits.judged_in
    cases = cases_of(path, kind, options.profile)
    if options.profile == "quick" and options.dtypes is None:
        dtypes = ("float32",) if "float32" in dtypes else dtypes[:1]
    if options.case is not None:
        pattern = options.case
        cases = [case for case in cases if name_of(case) == pattern or fnmatchcase(name_of(case), pattern)]
        if not cases:
            raise NotATarget(f"--case: no case of a {kind} is called {pattern!r}; --list-cases prints their names")
    return [(case, dtype) for dtype in dtypes for case in cases]


def cases_of(path: str, kind: str, profile: str = "full") -> list[SuiteCase]:
    """The cases of a function or a class. The public classes, which are many, get one grouping."""
    if kind != "class":
        kernels = [c for c in kernel_cases() if profile != "quick" or (c.grouping in QUICK and c.pairs < MODERATE)]
        of_functions = [case for case in STATES if case.function]
        if kind == "function":
            return [*kernels, *of_functions]
        return [*sequences.CASES[kind], *filter(_in_sequences, kernels), *of_functions]
    one = path in PUBLIC or profile != "full"
    layers = [case for case in layer_cases() if not one or case.grouping == ALL_FEATURES]
    return [*layers, *STATES, *cache_checks.CASES]


def _in_sequences(case: Case) -> bool:
    """Whether packed and paged functions, which take neither masks nor offsets, can have it as a batch."""
    feature = case.feature
    return feature.mask is None and feature.offset is None and not feature.dropout and case.config.chunk is None


QUICK = (ALL_FEATURES, *OTHER_ROWS)


def detect(path: str, options: Options = Options(limit=4 * TIME_LIMIT)) -> list[Finding]:
    """The conventions of a target.

    Args:
        path: MODULE:NAME, or the name of a public implementation.
        options: its `limit` is for all probes together.

    Raises:
        NotATarget: with one sentence, where there is no target.
    """
    quick_to_compile()
    with Worker(path, options.arrays, options.limit, options.changes) as worker:
        try:
            found: list[Finding] = list(worker.do(_detect))
        except Stopped as error:
            return [Finding(convention.name, unsupported=f"the target {error}") for convention in CONVENTIONS]
    if path not in PUBLIC:
        return found
    remedies = PUBLIC[path].remedies
    return [
        replace(f, own_remedy=remedies.get(f.convention, ""), public=True) if f.agrees is False else f for f in found
    ]


def name_of(case: SuiteCase) -> str:
    if isinstance(case, SequenceCase):
        return case.full_name
    if isinstance(case, StateCase):
        return states.name_of(case)
    return cache_checks.name_of(case) if isinstance(case, CacheCase) else case.name


def quantities_of(case: SuiteCase, arrays: str) -> tuple[str, ...]:
    """What is compared of a target that takes these arrays."""
    if isinstance(case, CacheCase | StateCase | SequenceCase):
        return QUANTITIES[:1]
    return quantities(case, framework(arrays))


def checks_of(worker: Worker, path: str, case: SuiteCase, dtype: str) -> list[Check]:
    """One case in one dtype, not explained yet; what ends the worker's process is a check that failed."""
    try:
        return [check for check in worker.do(_judge, case, dtype) if check is not None]
    except (Stopped, NotATarget, RuntimeError) as error:
        return [
            Check(
                name_of(case).split(" / ")[0],
                name_of(case),
                f"{path}, {dtype}",
                "output",
                float("inf"),
                "fail",
                str(error),
            )
        ]


def explained(
    path: str, checks: list[Check], items: list[tuple[SuiteCase, str]], target: Known, seconds: float = SECONDS
) -> list[Check]:
    """The checks, those that failed with the dialect that reproduces them and predicts what passed."""
    if all(check.answer is None for check in checks):
        return checks
    checks = _explained_sequences(checks, items, target)
    grouped: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        grouped.setdefault((check.case, check.column.rpartition(", ")[2]), []).append(check)
    answered: dict[tuple[str, str], Answered] = {}
    for case, dtype in items:
        fitted = _fitted(case, target)
        found = None if fitted is None else grouped.get((name_of(fitted), dtype))
        if found and fitted is not None:
            one = _answered(fitted, dtype, target.kind != "class", found)
            answered |= {} if one is None else {(found[0].case, dtype): one}
    words = dict(zip(answered, explanations(list(answered.values()), seconds), strict=True))
    return [
        replace(
            check,
            answer=None,
            explanation=words.get((check.case, check.column.rpartition(", ")[2]), "")
            if check.answer is not None
            else check.explanation,
        )
        for check in checks
    ]


def _explained_sequences(checks: list[Check], items: list[tuple[SuiteCase, str]], target: Known) -> list[Check]:
    cases = {case.full_name: case for case, _ in items if isinstance(case, SequenceCase)}
    if not cases:
        return checks
    batches = {case.name: case for case, _ in items if isinstance(case, Case) and case.pairs < MODERATE}
    return sequence_checks.explained(checks, cases, batches, target.limits)


class Known(Protocol):
    """kind: "class" or "function". limits: what it takes."""

    @property
    def kind(self) -> str: ...

    @property
    def limits(self) -> Limits: ...


def _fitted(case: SuiteCase, target: Known) -> Case | CacheCase | None:
    try:
        if isinstance(case, CacheCase):
            return fit_cache(case, target.limits)
        if isinstance(case, StateCase | SequenceCase):
            return None
        return fit(case, target.limits, layer=target.kind == "class")
    except Unsupported:
        return None


def _answered(case: Case | CacheCase, dtype: str, kernel: bool, checks: list[Check]) -> Answered | None:
    """What an explanation needs of a case; None where there is no answer, or no dialect has the case."""
    got = next((check.answer for check in checks if check.answer is not None), None)
    outputs = [check for check in checks if check.quantity in QUANTITIES]
    if got is None and any(check.verdict != "pass" and check.quantity == "output" for check in outputs):
        return None
    bare = any(check.quantity == "weights" and check.verdict == "unsupported" for check in outputs)
    if isinstance(case, CacheCase):
        of_cache = cache_in_dialects(case, dtype)
        return None if of_cache is None else Answered(name_of(case), dtype, 13, 1, of_cache, got, bare=True)
    if got is None and case.pairs >= LARGEST:
        return None
    dialects = in_dialects(case, dtype, kernel=kernel)
    sizes = case.T, case.S
    return Answered(case.feature.name, dtype, case.feature.clause, case.pairs, dialects, got, bare=bare, lengths=sizes)


def _judge(target: Target, case: SuiteCase, dtype: str) -> Iterator[Check | None]:
    set_x64(dtype != "float32")
    if isinstance(case, CacheCase):
        assert isinstance(target, TargetClass)
        yield from cache_checks.cache_checks(case, dtype, target)
    elif isinstance(case, SequenceCase):
        assert isinstance(target, SequenceFunction)
        yield from sequence_checks.sequence_checks(case, dtype, target)
    elif isinstance(case, StateCase):
        yield from state_checks(case, dtype, target)
    else:
        yield from target_checks(case, dtype, target)


def _detect(target: Target) -> Iterator[Finding]:
    set_x64(True)
    yield from findings(target)

"""One target, judged in processes of its own: nothing that it does ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

from conformance.cases import states
from conformance.cases.caches import CacheCase
from conformance.cases.states import STATES, StateCase
from conformance.cases.table import ALL_FEATURES, Case, kernel_cases, layer_cases
from conformance.checks import caches as cache_checks
from conformance.checks.check import QUANTITIES, Check, quantities
from conformance.checks.states import state_checks
from conformance.checks.targets import target_checks
from conformance.dialects.conventions import CONVENTIONS
from conformance.dialects.detect import Finding, findings
from conformance.targets import PUBLIC, NotATarget, Target, TargetClass
from conformance.targets.frameworks import framework, quick_to_compile, set_x64
from conformance.targets.worker import Stopped, Worker

SuiteCase = Case | CacheCase | StateCase
DTYPES = ("float64", "float32")
NOTHING: Mapping[str, Any] = {}
WORKERS = 2
TIME_LIMIT = 30.0  # seconds for one case
HEAD_START = 5.0  # a second process must import the target again, which a short run does not pay back


def judge(
    path: str,
    arrays: str | None,
    done: Callable[[int, int], None],
    limit: float = TIME_LIMIT,
    changes: Mapping[str, Any] = NOTHING,
) -> list[Check]:
    """Every case in both dtypes, on two processes; `done` is told how many of how many are finished.

    Raises NotATarget with one sentence before any work is done.
    """
    quick_to_compile()
    with Worker(path, arrays, limit, changes) as first:
        items = [(case, dtype) for dtype in first.limits.judged_in for case in cases_of(path, first.kind)]
        waiting: SimpleQueue[tuple[int, SuiteCase, str]] = SimpleQueue()
        for number, (case, dtype) in enumerate(items):
            waiting.put((number, case, dtype))
        found: dict[int, list[Check]] = {}
        short = Event()

        def work(worker: Worker) -> None:
            while True:
                try:
                    number, case, dtype = waiting.get_nowait()
                except Empty:
                    return
                found[number] = checks_of(worker, path, case, dtype)
                done(len(found), len(items))

        def work_too() -> None:
            if not short.wait(HEAD_START):
                with Worker(path, arrays, limit, changes) as second:
                    work(second)

        with ThreadPoolExecutor(WORKERS) as threads:
            helper = threads.submit(work_too)
            work(first)
            short.set()
            helper.result()
    return list(chain.from_iterable(found[number] for number in range(len(items))))


def detect(path: str, arrays: str | None, limit: float = TIME_LIMIT) -> list[Finding]:
    """The target's conventions. Raises NotATarget with one sentence where there is no target."""
    quick_to_compile()
    with Worker(path, arrays, limit) as worker:
        try:
            found = list(worker.do(_detect))
        except Stopped as error:
            return [Finding(convention.name, unsupported=f"the target {error}") for convention in CONVENTIONS]
    return found


def cases_of(path: str, kind: str) -> list[SuiteCase]:
    """Everybody's functions and classes get every case; of the public classes, which are many, one grouping does."""
    if kind == "function":
        return [*kernel_cases(), *(case for case in STATES if case.function)]
    layers = [case for case in layer_cases() if path not in PUBLIC or case.grouping == ALL_FEATURES]
    return [*layers, *STATES, *cache_checks.CASES]


def name_of(case: SuiteCase) -> str:
    if isinstance(case, StateCase):
        return states.name_of(case)
    return cache_checks.name_of(case) if isinstance(case, CacheCase) else case.name


def quantities_of(case: SuiteCase, arrays: str) -> tuple[str, ...]:
    """What is compared of a target that takes these arrays."""
    return QUANTITIES[:1] if isinstance(case, CacheCase | StateCase) else quantities(case, framework(arrays))


def checks_of(worker: Worker, path: str, case: SuiteCase, dtype: str) -> list[Check]:
    """One case in one dtype; what ends the worker's process is a check that failed."""
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


def _judge(target: Target, case: SuiteCase, dtype: str) -> Iterator[Check | None]:
    set_x64(dtype != "float32")
    if isinstance(case, CacheCase):
        assert isinstance(target, TargetClass)
        yield from cache_checks.cache_checks(case, dtype, target)
    elif isinstance(case, StateCase):
        yield from state_checks(case, dtype, target)
    else:
        yield from target_checks(case, dtype, target)


def _detect(target: Target) -> Iterator[Finding]:
    set_x64(True)
    yield from findings(target)

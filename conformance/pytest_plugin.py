"""`pytest --pyargs conformance --gqa-target MODULE:NAME`: one test for each case, dtype and quantity.

Every pytest run of an environment loads this module, so it imports nothing but pytest until a target is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.cases.caches import CacheCase
    from conformance.cases.sequences import SequenceCase
    from conformance.cases.states import StateCase
    from conformance.cases.table import Case
    from conformance.checks.check import Check
    from conformance.targets.worker import Worker

ABSENT = "conformance: expected --gqa-target MODULE:NAME, the class or the function to judge"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gqa", "grouped-query attention: the cases of `gqa conform` as tests")
    group.addoption("--gqa-target", metavar="MODULE:NAME", help="The class or function to judge, or a public name.")
    group.addoption("--gqa-arrays", choices=("numpy", "torch", "jax"), help="The arrays that the target takes.")
    group.addoption("--gqa-time-limit", type=float, metavar="SECONDS", help="What a case may take; 30 unless given.")
    group.addoption("--gqa-skips", metavar="FILE", help="Patterns of cases to skip, one a line; # starts a comment.")
    group.addoption("--gqa-xfails", metavar="FILE", help="Patterns of cases that are expected to fail.")


@dataclass(frozen=True)
class Item:
    """One test: what of which case. names: what a pattern may match, from the case alone to the whole name."""

    case: Case | CacheCase | StateCase | SequenceCase
    dtype: str
    quantity: str

    @property
    def names(self) -> tuple[str, str, str]:
        from conformance.checks.judge import name_of

        name = name_of(self.case)
        return name, f"{name}, {self.dtype}", f"{name}, {self.dtype}, {self.quantity}"


@dataclass
class Judge:
    """The target, in a process of its own, and what it has answered so far."""

    worker: Worker
    answers: dict[tuple[str, str], list[Check]] = field(default_factory=dict)

    def items(self) -> list[Item]:
        from conformance.checks.judge import cases_of, quantities_of

        return [
            Item(case, dtype, quantity)
            for dtype in self.worker.limits.judged_in
            for case in cases_of(self.worker.path, self.worker.kind)
            for quantity in quantities_of(case, self.worker.framework)
        ]

    def check(self, item: Item) -> Check:
        """A case that got no answer at all failed, whatever was to be compared."""
        from conformance.checks.judge import checks_of, explained

        key = item.names[1], item.dtype
        if key not in self.answers:
            found = checks_of(self.worker, self.worker.path, item.case, item.dtype)
            self.answers[key] = explained(self.worker.path, found, [(item.case, item.dtype)], self.worker)
        checks = self.answers[key]
        return next((check for check in checks if check.quantity == item.quantity), checks[0])


@dataclass
class Patterns:
    """One file of patterns, and which of them have matched a case."""

    path: str
    patterns: list[str]

    def match(self, item: Item) -> str | None:
        return next((p for p in self.patterns if any(fnmatchcase(name, p) for name in item.names)), None)

    def unmatched(self, everything: list[Item]) -> list[str]:
        names = {name for item in everything for name in item.names}
        return [p for p in self.patterns if not any(fnmatchcase(name, p) for name in names)]


JUDGE = pytest.StashKey[Judge]()
PATTERNS = pytest.StashKey[tuple[Patterns, Patterns]]()
NOTHING_JUDGED = pytest.StashKey[bool]()
NOTHING = "gqa: nothing was judged: every case is unsupported or skipped"


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("gqa_target")
    if path is None:
        return
    from conformance.checks.judge import TIME_LIMIT
    from conformance.targets import NotATarget
    from conformance.targets.frameworks import quick_to_compile
    from conformance.targets.worker import Worker

    config.stash[PATTERNS] = (_patterns(config.getoption("gqa_skips")), _patterns(config.getoption("gqa_xfails")))
    quick_to_compile()
    worker = Worker(path, config.getoption("gqa_arrays"), config.getoption("gqa_time_limit") or TIME_LIMIT)
    try:
        worker.__enter__()
    except NotATarget as error:
        raise pytest.UsageError(str(error)) from error
    config.add_cleanup(lambda: worker.__exit__(None, None, None))
    config.stash[JUDGE] = Judge(worker)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gqa_item" not in metafunc.fixturenames:
        return
    judge = metafunc.config.stash.get(JUDGE, None)
    if judge is None:
        raise pytest.Collector.CollectError(ABSENT)
    everything = judge.items()
    skips, xfails = metafunc.config.stash[PATTERNS]
    for option, file in (("--gqa-skips", skips), ("--gqa-xfails", xfails)):
        for pattern in file.unmatched(everything):
            warnings.warn(pytest.PytestWarning(f"{option} {file.path}: {pattern!r} matches no case"), stacklevel=1)
    metafunc.parametrize("gqa_item", [_parameter(item, skips, xfails) for item in everything])


@pytest.fixture
def gqa_check(gqa_item: Item, request: pytest.FixtureRequest) -> Check:
    """What the target did."""
    return request.config.stash[JUDGE].check(gqa_item)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """As `gqa conform`: a run in which nothing was judged has not passed."""
    if exitstatus == pytest.ExitCode.OK and _nothing_judged(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[NOTHING_JUDGED] = True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if NOTHING_JUDGED in config.stash:
        terminalreporter.write_line(NOTHING, red=True)


def _nothing_judged(config: pytest.Config) -> bool:
    reporter = config.pluginmanager.get_plugin("terminalreporter")  # xdist's own processes have none
    if reporter is None or JUDGE not in config.stash or config.option.collectonly:
        return False
    return not any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "error", "xfailed", "xpassed"))


def _parameter(item: Item, skips: Patterns, xfails: Patterns) -> Any:
    marks = []
    if (pattern := skips.match(item)) is not None:
        marks.append(pytest.mark.skip(reason=f"{skips.path}: {pattern}"))
    if (pattern := xfails.match(item)) is not None:
        marks.append(pytest.mark.xfail(reason=f"{xfails.path}: {pattern}"))
    return pytest.param(item, id=item.names[-1], marks=marks)


def _patterns(path: str | None) -> Patterns:
    """Raises UsageError where the file cannot be read."""
    if path is None:
        return Patterns("", [])
    try:
        return Patterns(path, list(_lines(Path(path).read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"{path}: {error}") from error


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        pattern = line.partition("#")[0].strip()
        if pattern:
            yield pattern

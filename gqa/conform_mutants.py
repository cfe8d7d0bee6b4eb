"""`gqa conform --mutants`: every planted mutant against every case, and against other projects' tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from conformance.mutants import MUTANTS, naming, other_suites
from conformance.mutants.run import run_mutant
from conformance.report import tables
from conformance.report.mutants import Power, power_details, power_screen
from conformance.targets.frameworks import one_thread, quick_to_compile
from gqa.interrupt import silence_children
from gqa.outputs import STDOUT, list_written, write_json
from gqa.progress import bars

WORKERS = 2


def run_mutants(json: Path | None, details: bool) -> int:
    """Print how many cases catch the mutants; exit code 1 where one is not caught."""
    power = _measured()
    if json != STDOUT:
        console = Console()
        for part in (*power_screen(power), *(power_details(power) if details else ())):
            console.print(part, highlight=False)
    if json is not None:
        more = {"other_suites": power.elsewhere, "named_by_dialect": [asdict(found) for found in power.named]}
        write_json(json, tables.as_json([], power.results, []) | more)
    list_written(json)
    return 1 if power.missed else 0


def _measured() -> Power:
    silence_children()
    quick_to_compile()
    suites = other_suites.installed_suites()
    with (
        bars() as progress,  # first, so that what its processes write to stderr does not get into the bar
        ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=one_thread) as pool,
    ):
        own = {(family, bug): pool.submit(run_mutant, family, bug) for family, bugs in MUTANTS.items() for bug in bugs}
        others = {(suite, family): pool.submit(other_suites.catches, suite, family) for suite, family in _pairs(suites)}
        named = [pool.submit(naming.naming, family, bug) for family, bug in naming.conventions()]
        every: list[Future[Any]] = [*own.values(), *others.values(), *named]
        bar = progress.add_task("planted mutants", total=len(every))
        for _ in as_completed(every):
            progress.update(bar, advance=1)
    elsewhere: dict[str, dict[str, tuple[str, ...]]] = {suite: {} for suite in suites}
    for (suite, _), future in others.items():
        elsewhere[suite] |= future.result()
    return Power(
        [future.result() for future in own.values()],
        elsewhere,
        {suite: other_suites.usable(suite) for suite in suites},
        [future.result() for future in named],
    )


def _pairs(suites: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """onnx has no gradients."""
    for suite in suites:
        yield from ((suite, family) for family in ("kernel", "gradients") if (suite, family) != ("onnx", "gradients"))

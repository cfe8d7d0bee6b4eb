"""`gqa conform --mutants`: every planted bug against every case, and against other projects' tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from conformance.mutants import MUTANTS, naming, other_suites
from conformance.mutants.naming import Naming
from conformance.mutants.run import MutantResult, run_mutant
from conformance.report import tables
from conformance.targets.frameworks import one_thread, quick_to_compile

WORKERS = 2
Elsewhere = dict[str, dict[str, tuple[str, ...]]]


def mutants(console: Console, progress: Progress, json_file: Path | None) -> bool:
    """Print how many cases catch each planted bug; whether a bug was not caught."""
    results, elsewhere, named = _measured(progress)
    console.print(tables.power(results, elsewhere, {found.bug: _answer(found) for found in named}))
    console.print(tables.case_power(results))
    for suite in elsewhere:
        usable, there = other_suites.usable(suite)
        console.print(f"{suite}: {usable} of {there} tests can run a kernel", highlight=False)
    survived = [found.bug for found in results if not found.caught_by]
    console.print(f"{len(results) - len(survived)} of {len(results)} planted bugs caught", highlight=False)
    right = sum(found.right for found in named)
    console.print(f"gqa dialect names {right} of the {len(named)} that are conventions", highlight=False)
    if json_file is not None:
        more = {"other_suites": elsewhere, "named_by_dialect": [asdict(found) for found in named]}
        json_file.write_text(json.dumps(tables.as_json([], results, []) | more, indent=1) + "\n")
    return bool(survived)


def _answer(found: Naming) -> str:
    return found.found if found.right else f"[bold red]{found.found}[/]"


def _measured(progress: Progress) -> tuple[list[MutantResult], Elsewhere, list[Naming]]:
    quick_to_compile()
    suites = other_suites.installed_suites()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        own = {(family, bug): pool.submit(run_mutant, family, bug) for family, bugs in MUTANTS.items() for bug in bugs}
        others = {(suite, family): pool.submit(other_suites.catches, suite, family) for suite, family in _pairs(suites)}
        named = [pool.submit(naming.naming, family, bug) for family, bug in naming.conventions()]
        every: list[Future[Any]] = [*own.values(), *others.values(), *named]
        for _ in progress.track(as_completed(every), total=len(every), description="planted bugs"):
            pass
    elsewhere: Elsewhere = {suite: {} for suite in suites}
    for (suite, _), future in others.items():
        elsewhere[suite] |= future.result()
    return [future.result() for future in own.values()], elsewhere, [future.result() for future in named]


def _pairs(suites: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """onnx has no gradients."""
    for suite in suites:
        yield from ((suite, family) for family in ("kernel", "gradients") if (suite, family) != ("onnx", "gradients"))

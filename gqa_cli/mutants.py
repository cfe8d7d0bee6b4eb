"""`gqa conform --mutants`: every planted bug against every case, and against other projects' tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from conformance import other_suites, report
from conformance.kill import Kill, kill
from conformance.planted import BUGS

WORKERS = 2
Elsewhere = dict[str, dict[str, tuple[str, ...]]]


def mutants(console: Console, progress: Progress, json_file: Path | None) -> bool:
    """Print the kill matrix; whether a bug survived."""
    kills, elsewhere = _measured(progress)
    console.print(report.power(kills, elsewhere))
    console.print(report.matrix_of_kills(kills))
    for suite in elsewhere:
        asked, there = other_suites.shown(suite)
        console.print(f"{suite}: {asked} of {there} tests could be asked of a kernel", highlight=False)
    survived = [found.bug for found in kills if not found.caught_by]
    console.print(f"{len(kills) - len(survived)} of {len(kills)} planted bugs caught", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json([], kills, []) | {"other_suites": elsewhere}, indent=1) + "\n")
    return bool(survived)


def _measured(progress: Progress) -> tuple[list[Kill], Elsewhere]:
    suites = other_suites.installed_suites()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        own = {(family, bug): pool.submit(kill, family, bug) for family, bugs in BUGS.items() for bug in bugs}
        others = {(suite, family): pool.submit(other_suites.catches, suite, family) for suite, family in _pairs(suites)}
        every: list[Future[Any]] = [*own.values(), *others.values()]
        for _ in progress.track(as_completed(every), total=len(every), description="planted bugs"):
            pass
    elsewhere: Elsewhere = {suite: {} for suite in suites}
    for (suite, _), future in others.items():
        elsewhere[suite] |= future.result()
    return [future.result() for future in own.values()], elsewhere


def _pairs(suites: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """onnx has no gradients."""
    for suite in suites:
        yield from ((suite, family) for family in ("kernel", "gradients") if (suite, family) != ("onnx", "gradients"))

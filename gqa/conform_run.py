"""What `gqa conform` runs and prints."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from conformance.cases import sequences
from conformance.checks import judge, run
from conformance.checks import smollm2 as real
from conformance.checks.check import Check
from conformance.checks.vectors import judge_answers
from conformance.mutants.run import MutantResult
from conformance.report import summary, tables
from conformance.report.mutants import mutant_table
from conformance.targets import BACKENDS, PUBLIC, NotATarget
from gqa.conform_files import Reports
from gqa.interrupt import silence_children
from gqa.outputs import STDOUT
from gqa.progress import bars
from gqa.targets import check_target


def backends(reports: Reports, details: bool, *, synthetic: bool) -> int:
    """Our backends, each against the others; the exit code."""
    console, start = console_for(reports), time.monotonic()
    not_run = _not_installed() + _real_left_out(synthetic)
    checks, results = _run(with_real=not _real_left_out(synthetic))
    console.print(summary.header(time.monotonic() - start), "")
    for part in summary.backends_screen(checks, results, not_run):
        console.print(part, highlight=False)
    if details:
        real_rows = [check for check in checks if summary.is_real(check)]
        synthetic_rows = [check for check in checks if not summary.is_real(check)]
        _print_details(console, synthetic_rows, "Our backends, each against the others")
        _print_details(console, real_rows, "SmolLM2-135M, real weights and real text")
        console.print(mutant_table(results))
    reports.write(checks, results, not_run, "gqa conform: our backends", [])
    survived = any(not found.caught_by for found in results)
    counted = tables.counts(checks)
    if counted["fail"] or survived or not counted["pass"]:
        return 1
    return 0 if summary.compared(checks) else 2


def targets(target: str | None, reports: Reports, details: bool) -> int:
    """One target, or every public one; the exit code: 1 where anything failed or nothing was judged."""
    console, start = console_for(reports), time.monotonic()
    if target is not None:
        check_target("--target", target)
    checks, not_run, notes = _judged([target] if target else list(PUBLIC), reports)
    console.print(summary.header(time.monotonic() - start), "")
    everything = [check for found in checks.values() for check in found]
    if target is not None:
        screen = summary.target_screen(target, everything, reports.arrays, notes)
    else:
        screen = summary.targets_screen(checks, not_run)
    for part in screen:
        console.print(part, highlight=False)
    if details and target is not None:
        _print_details(console, everything, target)
    elif details:
        console.print(tables.targets(checks))
    judged = ", ".join(checks) if len(checks) < 4 else f"{len(checks)} targets"
    reports.write(everything, [], not_run, f"gqa conform: {judged}", list(checks))
    counted = tables.counts(everything)
    return 1 if counted["fail"] or not counted["pass"] else 0


def list_cases() -> None:
    """The names of all cases, those of functions first."""
    for kind in ("function", "class"):
        print(f"# {kind}")
        for case in judge.cases_of("", kind):
            print(judge.name_of(case))
    for kind, own in sequences.CASES.items():
        print(f"# {kind}: these, and those of a function that have no mask")
        for sequence in own:
            print(sequence.full_name)


def answers(folder: Path, reports: Reports, details: bool) -> int:
    """A folder of answers; the exit code."""
    console, start = console_for(reports), time.monotonic()
    try:
        checks = judge_answers(folder).checks
    except NotATarget as error:
        raise ValueError(str(error)) from error
    console.print(summary.header(time.monotonic() - start), "")
    for part in summary.answers_screen(str(folder), checks):
        console.print(part, highlight=False)
    if details:
        _print_details(console, checks, str(folder))
    reports.write(checks, [], [], f"gqa conform: {folder}", [])
    counted = tables.counts(checks)
    return 1 if counted["fail"] or not counted["pass"] else 0


def console_for(reports: Reports) -> Console:
    """Stdout, or stderr where the JSON goes to stdout."""
    return Console(stderr=reports.json == STDOUT)


def _judged(names: list[str], reports: Reports) -> tuple[dict[str, list[Check]], list[str], list[str]]:
    """The checks of each target, why the others were not judged, and what a target always does. Raises ValueError where
    the only one cannot be judged.
    """
    checks: dict[str, list[Check]] = {}
    not_run: list[str] = []
    notes: list[str] = []
    silence_children()
    with bars() as progress:
        for name in names:
            bar = progress.add_task(name, total=None)
            try:
                judged = judge.judge(name, reports.options, partial(_tell, progress, bar))
                checks[name] = judged.checks
                notes += judged.notes
            except NotATarget as error:
                if len(names) == 1:
                    raise ValueError(str(error)) from error
                not_run.append(str(error))
            progress.remove_task(bar)
    return checks, not_run, notes


def _tell(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


def _run(*, with_real: bool) -> tuple[list[Check], list[MutantResult]]:
    silence_children()
    tasks = run.backend_tasks()
    with bars() as progress:
        bar = progress.add_task("synthetic cases", total=sum(task.size for task in tasks))
        checks, results = run.run(tasks, lambda size: progress.update(bar, advance=size), mutants=True)
        if with_real:
            bar = progress.add_task("real weights", total=real.STEPS)
            checks += real.real_checks(run.installed_backends(), lambda size: progress.update(bar, advance=size))
            results.append(real.tiled_heads_result())
    return checks, results


def _not_installed() -> list[str]:
    installed = run.installed_backends()
    return [f"gqa_{backend}: {backend} is not installed" for backend in BACKENDS if backend not in installed]


def _real_left_out(synthetic: bool) -> list[str]:
    reason = "switched off by --synthetic" if synthetic else real.missing_parts()
    return [f"real weights: {reason}"] if reason else []


def _print_details(console: Console, checks: list[Check], title: str) -> None:
    for table in tables.matrices(checks, title):
        console.print(table)
    for line in tables.failures(checks):
        console.print(line)

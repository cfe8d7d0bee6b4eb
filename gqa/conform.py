"""`gqa conform`: run the suite on our three backends, or on anybody's class or function."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from conformance.checks import judge, run
from conformance.checks import smollm2 as real
from conformance.checks.check import Check
from conformance.mutants.run import MutantResult
from conformance.report import tables
from conformance.targets import BACKENDS, PUBLIC, NotATarget
from gqa.conform_files import Reports
from gqa.conform_mutants import mutants as measure_mutants
from gqa.options import Arrays


def conform(
    target: Annotated[
        str | None, typer.Option(help="Judge MODULE:NAME, a class or a function, or a public implementation by name.")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Judge every public implementation installed.")] = False,
    arrays: Arrays = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that a target may take for one case.")] = judge.TIME_LIMIT,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every check to this file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write every check to this file as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file: matrix, filters, pictures.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Leave out the real model's weights.")] = False,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Show every planted bug every case, and other projects' tests.")
    ] = False,
) -> None:
    """Print what agrees and what does not. Exit code 1 on any mismatch, 2 where the target cannot be judged."""
    console, reports = Console(), Reports(json_file, junit, html, arrays, time_limit)
    reports.refuse_early()
    if mutants:
        with _progress(console) as progress:
            survived = measure_mutants(console, progress, json_file)
        raise typer.Exit(1 if survived else 0)
    if target or everyone:
        raise typer.Exit(_targets(console, [target] if target else list(PUBLIC), reports))

    not_run = _not_installed() + _real_left_out(synthetic)
    with _progress(console) as progress:
        checks, results = _run(progress, run.backend_tasks(), mutants=True)
        real_checks: list[Check] = []
        if not _real_left_out(synthetic):
            real_checks = _run_real(progress)
            results.append(real.tiled_heads_result())

    _print(console, checks, "Our backends, each against the others")
    if real_checks:
        _print(console, real_checks, "SmolLM2-135M, real weights and real text")
    if results:
        console.print(tables.mutant_table(results))
    failed = _summary(console, checks + real_checks, results, not_run)
    reports.write(checks + real_checks, results, not_run, "gqa conform: our backends", [])
    raise typer.Exit(1 if failed else 0)


def _targets(console: Console, names: list[str], reports: Reports) -> int:
    """The exit code: 1 where anything failed or nothing was judged, 2 where the only target is none."""
    checks: dict[str, list[Check]] = {}
    not_run = []
    for name in names:
        try:
            with _progress(console, transient=True) as progress:
                bar = progress.add_task(name, total=None)
                checks[name] = judge.judge(name, reports.arrays, partial(_tell, progress, bar), reports.limit)
        except NotATarget as error:
            if len(names) == 1:
                typer.echo(error, err=True)
                return 2
            not_run.append(str(error))
    if len(names) > 1:  # case by case that would be thousands of lines, which are for a file
        console.print(tables.targets(checks))
    else:
        for name, found in checks.items():
            _print(console, found, name)
    everything = [check for found in checks.values() for check in found]
    failed = _summary(console, everything, [], not_run)
    judged = ", ".join(checks) if len(checks) < 4 else f"{len(checks)} targets"
    reports.write(everything, [], not_run, f"gqa conform: {judged}", list(checks))
    return 1 if failed else 0


def _tell(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


def _not_installed() -> list[str]:
    installed = run.installed_backends()
    return [f"gqa_{backend}: {backend} is not installed" for backend in BACKENDS if backend not in installed]


def _real_left_out(synthetic: bool) -> list[str]:
    reason = "switched off by --synthetic" if synthetic else real.missing_parts()
    return [f"real weights: {reason}"] if reason else []


def _progress(console: Console, *, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
    )


def _run(progress: Progress, tasks: list[run.Task], mutants: bool) -> tuple[list[Check], list[MutantResult]]:
    bar = progress.add_task("synthetic cases", total=sum(task.size for task in tasks))
    return run.run(tasks, lambda size: progress.update(bar, advance=size), mutants=mutants)


def _run_real(progress: Progress) -> list[Check]:
    bar = progress.add_task("real weights", total=real.STEPS)
    return real.real_checks(run.installed_backends(), lambda size: progress.update(bar, advance=size))


def _print(console: Console, checks: list[Check], title: str) -> None:
    console.print(tables.matrix(checks, title))
    if tables.counts(checks)["fail"]:
        console.print(tables.failures(checks))


def _summary(console: Console, checks: list[Check], results: list[MutantResult], not_run: list[str]) -> bool:
    """The closing lines; whether anything failed, or nothing was judged at all."""
    counted = tables.counts(checks)
    survived = [found.bug for found in results if not found.caught_by]
    for part in not_run:
        console.print(f"[yellow]left out: {part}[/]")
    console.print(
        f"{counted['pass']} passed, {counted['fail']} failed, {counted['unsupported']} unsupported", highlight=False
    )
    if results:
        console.print(f"{len(results) - len(survived)} of {len(results)} planted bugs caught", highlight=False)
    return bool(counted["fail"] or survived or not counted["pass"])

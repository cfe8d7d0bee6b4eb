"""`gqa conform`: run the suite on our three wings, or on anybody's class or function."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from conformance import judge, real, report, run
from conformance.kill import Kill
from conformance.proof import Check
from conformance.targets import PUBLIC, WINGS, NotATarget
from gqa_cli.mutants import mutants as measure_mutants
from gqa_cli.reports import Reports

Arrays = Annotated[
    Literal["numpy", "torch", "jax"] | None,
    typer.Option(help="The arrays that the target takes, where it is not a torch or flax module."),
]


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
        checks, kills = _run(progress, run.wing_tasks(), planted_bugs=True)
        real_checks: list[Check] = []
        if not _real_left_out(synthetic):
            real_checks = _run_real(progress)
            kills.append(real.tiled_heads_kill())

    _print(console, checks, "Our wings, each against the others")
    if real_checks:
        _print(console, real_checks, "SmolLM2-135M, real weights and real text")
    if kills:
        console.print(report.kill_matrix(kills))
    failed = _summary(console, checks + real_checks, kills, not_run)
    reports.write(checks + real_checks, kills, not_run, "gqa conform: our wings", [])
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
        console.print(report.targets(checks))
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
    installed = run.installed_wings()
    return [f"gqa_{wing}: {wing} is not installed" for wing in WINGS if wing not in installed]


def _real_left_out(synthetic: bool) -> list[str]:
    reason = "not asked for (--synthetic)" if synthetic else real.missing_parts()
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


def _run(progress: Progress, tasks: list[run.Task], planted_bugs: bool) -> tuple[list[Check], list[Kill]]:
    bar = progress.add_task("synthetic cases", total=sum(task.size for task in tasks))
    return run.run(tasks, lambda size: progress.update(bar, advance=size), planted_bugs=planted_bugs)


def _run_real(progress: Progress) -> list[Check]:
    bar = progress.add_task("real weights", total=real.STEPS)
    return real.real_checks(run.installed_wings(), lambda size: progress.update(bar, advance=size))


def _print(console: Console, checks: list[Check], title: str) -> None:
    console.print(report.matrix(checks, title))
    if report.counts(checks)["fail"]:
        console.print(report.failures(checks))


def _summary(console: Console, checks: list[Check], kills: list[Kill], not_run: list[str]) -> bool:
    """The closing lines; whether anything failed, or nothing was judged at all."""
    counted = report.counts(checks)
    survived = [kill.bug for kill in kills if not kill.caught_by]
    for part in not_run:
        console.print(f"[yellow]left out: {part}[/]")
    console.print(
        f"{counted['pass']} passed, {counted['fail']} failed, {counted['unsupported']} unsupported", highlight=False
    )
    if kills:
        console.print(f"{len(kills) - len(survived)} of {len(kills)} planted bugs caught", highlight=False)
    return bool(counted["fail"] or survived or not counted["pass"])

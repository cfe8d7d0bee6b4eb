"""`gqa conform`: run the suite on our backends, or on anybody's class or function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqa.errors import one_sentence
from gqa.options import Arrays, Device, Layout, LimitsFile, TimeLimit, WeightsLayout
from gqa.outputs import check_files


def conform(
    target: Annotated[
        str | None, typer.Option(help="Judge MODULE:NAME, a class or a function, or a public implementation by name.")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Judge every public implementation installed.")] = False,
    answers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Judge the answers in a folder to the cases of `gqa vectors`.")
    ] = None,
    arrays: Arrays = None,
    limits: LimitsFile = None,
    layout: Layout = None,
    weights: WeightsLayout = None,
    device: Device = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Dtypes that the target is judged in, as float32,bfloat16.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="quick, kernels or full: how many cases the target runs.  [default: full]")
    ] = None,
    case: Annotated[str | None, typer.Option(help="Run only the cases that this pattern matches.")] = None,
    list_cases: Annotated[bool, typer.Option("--list-cases", help="Print the names of the cases.")] = False,
    time_limit: TimeLimit = None,
    details: Annotated[bool, typer.Option("--details", help="Print the tables of all groupings and failures.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every check; - for stdout.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every check as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page: matrix, filters, pictures.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Leave out the real model's weights.")] = False,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Show every planted bug every case, and other projects' tests.")
    ] = False,
) -> None:
    """Print what agrees and what does not.

    Exit code 1 on any mismatch, 2 where nothing can be judged: of a target, or with one backend alone.
    """
    with one_sentence():
        judged = bool(target or everyone)
        own: dict[str, object] = {"arrays": arrays, "limits": limits, "layout": layout, "weights": weights}
        own |= {"device": device, "dtypes": dtypes, "profile": profile, "case": case, "time_limit": time_limit}
        _refuse_without("--target or --all", judged, **own)
        _refuse_combinations(target, everyone, answers, mutants, synthetic, junit, html)
        check_files({"--json": json, "--junit": junit, "--html": html})
        from gqa import conform_run
        from gqa.conform_files import Reports
        from gqa.targets import judged_by

        if list_cases:
            conform_run.list_cases()
            raise typer.Exit(0)
        options = judged_by(
            arrays, limits, layout, weights, device, dtypes=dtypes, profile=profile, case=case, limit=time_limit
        )
        reports = Reports(json, junit, html, options)
        if answers is not None:
            raise typer.Exit(conform_run.answers(answers, reports, details))
        if mutants:
            from gqa.conform_mutants import run_mutants

            code = run_mutants(json, details)
        elif judged:
            code = conform_run.targets(target, reports, details)
        else:
            code = conform_run.backends(reports, details, synthetic=synthetic)
    raise typer.Exit(code)


def _refuse_combinations(
    target: str | None,
    everyone: bool,
    answers: Path | None,
    mutants: bool,
    synthetic: bool,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Options of which only one can be meant."""
    _refuse_together(target=target, all=everyone)
    _refuse_together(answers=answers, target=target, all=everyone, mutants=mutants, synthetic=synthetic, html=html)
    _refuse_together(mutants=mutants, target=target, all=everyone, junit=junit, html=html, synthetic=synthetic)
    _refuse_together(synthetic=synthetic, target=target, all=everyone)


def _refuse_together(**options: object) -> None:
    """The first of the options excludes the others."""
    first, *others = options
    for other in others:
        if options[first] and options[other]:
            raise ValueError(f"--{other}: cannot be given with --{first}")


def _refuse_without(needed: str, given: bool, **options: object) -> None:
    for name, value in options.items():
        if value is not None and not given:
            raise ValueError(f"--{name.replace('_', '-')}: applies to {needed} alone, and neither is given")

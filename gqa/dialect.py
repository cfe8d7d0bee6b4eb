"""`gqa dialect`: the conventions that an attention follows, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqa.errors import one_sentence
from gqa.options import Arrays, Device, Json, Layout, LimitsFile, WeightsLayout
from gqa.outputs import check_files


def dialect(
    target: Annotated[str | None, typer.Argument(help="MODULE:NAME, or the name of a public implementation.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every public implementation that is installed.")] = False,
    arrays: Arrays = None,
    limits: LimitsFile = None,
    layout: Layout = None,
    weights: WeightsLayout = None,
    device: Device = None,
    details: Annotated[bool, typer.Option("--details", help="Print every convention, not only what differs.")] = False,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table of all to this file.")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tell what a page of --markdown says otherwise; exit code 1.")
    ] = None,
    json: Json = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for all questions to a target; 120 unless given.")
    ] = None,
) -> None:
    """State what TARGET does where implementations differ, and the remedy.

    Exit code 2 if there is no such target.
    """
    with one_sentence():
        check_files({"--json": json, "--markdown": markdown})
        if target is None and not everyone:
            raise ValueError(
                "TARGET: expected MODULE:NAME, the name of a public implementation as torch.sdpa, or --all"
            )
        if target is not None and everyone:
            raise ValueError("--all: cannot be given with a target")
        if everyone and arrays is not None:
            raise ValueError("--arrays: applies to a target of your own, not to --all")
        from conformance.checks.judge import TIME_LIMIT
        from gqa import dialect_run
        from gqa.targets import judged_by

        options = judged_by(
            arrays, limits, layout, weights, device, limit=4 * TIME_LIMIT if time_limit is None else time_limit
        )
        code = dialect_run.dialects(target, options, details, json, markdown, check)
    raise typer.Exit(code)

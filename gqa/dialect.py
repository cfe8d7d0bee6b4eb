"""`gqa dialect`: the conventions that an attention follows, by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.checks.judge import TIME_LIMIT, detect
from conformance.dialects.conventions import CONVENTION
from conformance.dialects.detect import UNDECIDED, Finding
from conformance.dialects.markdown import markdown
from conformance.targets import PUBLIC, NotATarget
from gqa.options import Arrays


def dialect(
    target: Annotated[str | None, typer.Argument(help="MODULE:NAME, or the name of a public implementation.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every public implementation that is installed.")] = False,
    arrays: Arrays = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table of all to this file.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every finding to this file.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for all questions to a target.")] = 4 * TIME_LIMIT,
) -> None:
    """State what TARGET does where implementations differ, and the remedy. Exit code 2 if there is no such target."""
    console = Console()
    if (target is None) == (not everyone):
        typer.echo(f"dialect: expected MODULE:NAME, --all, or one of {', '.join(PUBLIC)}", err=True)
        raise typer.Exit(2)
    answers: dict[str, list[Finding]] = {}
    missing: dict[str, str] = {}
    for name in PUBLIC if everyone else (target or "",):
        try:
            answers[name] = detect(name, arrays, time_limit)
        except NotATarget as error:
            missing[name] = str(error)
            if not everyone:
                typer.echo(error, err=True)
                raise typer.Exit(2) from error
            console.print(f"[yellow]{error}[/]")
            continue
        console.print(_table(name, answers[name]))
    if markdown_file is not None:
        markdown_file.write_text(markdown(answers, missing))
    if json_file is not None:
        found: dict[str, Any] = {name: [asdict(f) | {"agrees": f.agrees} for f in fs] for name, fs in answers.items()}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _table(target: str, findings: list[Finding]) -> Table:
    table = Table(title=target, caption="differences from SPEC.md, by clause")
    table.add_column("convention")
    table.add_column("answer", overflow="fold")
    table.add_column("SPEC.md", overflow="fold")
    table.add_column("seen elsewhere, and the remedy", overflow="fold")
    for f in findings:
        convention = CONVENTION[f.convention]
        if f.unsupported:
            table.add_row(f.convention, Text(f"unsupported: {f.unsupported}", style="dim"), "", "")
        elif f.agrees or f.answer == UNDECIDED:
            table.add_row(f.convention, Text(f.answer, style="green" if f.agrees else "dim"), "", "")
        else:
            answer = Text(
                f.answer + (f"\n{f.raised or f.evidence}" if f.raised or f.evidence else ""), style="bold red"
            )
            notes = "\n".join(part for part in (f.where, f.remedy and f"Remedy: {f.remedy}") if part)
            table.add_row(f.convention, answer, f"{convention.spec} (SPEC {convention.clause})", Text(notes))
    return table

"""What the studies share: packages that they need, progress, and the files that they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gqa_studies import machine
from gqa_studies.rows import Rows, write_csv, write_json

Draw = Callable[[Any], Any]  # the module gqa_studies.plots -> a figure


def require(*packages: str) -> None:
    missing = [package for package in packages if not machine.installed(package)]
    if missing:
        refuse(f"This study needs {' and '.join(missing)}: not installed.")


def refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(2)


def steps_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def steps_bar(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    bar = progress.add_task(what, total=total)
    return lambda count: progress.update(bar, advance=count)


def split(rows: list[tuple[Any, list[str]]]) -> tuple[list[Any], list[tuple[Any, str]]]:
    """The rows that can be run, and the others with the reason."""
    able = [row for row, missing in rows if not missing]
    return able, [(row, f"{' and '.join(missing)} not installed") for row, missing in rows if missing]


def about_machine(limits: machine.Limits | None = None) -> dict[str, Any]:
    return {"machine": machine.description(limits), "versions": machine.versions()}


def print_about(console: Console, about: dict[str, Any]) -> None:
    for title, facts in about.items():
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        console.print(f"{title}: {known}", highlight=False)


def print_left_out(console: Console, left_out: list[str]) -> None:
    for part in left_out:
        console.print(f"[yellow]left out: {part}[/]")


def finish(
    console: Console, rows: Rows, left_out: list[str], about: dict[str, Any], csv: Path | None, json: Path | None
) -> None:
    """What was left out, the machine, and the files where they are wanted."""
    print_left_out(console, left_out)
    print_about(console, about)
    if csv is not None:
        write_csv(csv, rows)
    if json is not None:
        write_json(json, **about, rows=rows, left_out=left_out)


def publish(console: Console, folder: Path, name: str, rows: Rows, draw: Draw | None) -> None:
    """The rows as CSV and, where matplotlib is installed, the figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.csv"]
    write_csv(written[0], rows)
    if draw is not None and machine.installed("matplotlib"):
        from gqa_studies import plots

        written.append(folder / f"{name}.png")
        plots.saved(draw(plots), written[-1])
    elif draw is not None:
        console.print("[yellow]left out: the figure: matplotlib not installed[/]")
    console.print(f"written: {', '.join(str(path) for path in written)}", highlight=False)

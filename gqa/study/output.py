"""What the studies share: packages that they need, the machine, and the files that they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gqa.outputs import list_written
from gqa.outputs import write_json as write_json_file
from gqa.study.options import QUICK
from gqa_spec.packages import not_installed
from gqa_studies import machine
from gqa_studies.rows import Rows, write_csv

Draw = Callable[[Any], Any]  # the module gqa_studies.plots -> a figure


def require(*packages: str) -> None:
    """Raises ValueError where a package is missing."""
    missing = [package for package in packages if not machine.installed(package)]
    if missing:
        raise ValueError(not_installed(missing))


def split(rows: list[tuple[Any, list[str]]]) -> tuple[list[Any], list[tuple[Any, str]]]:
    """The rows that can be run, and the others with the reason."""
    able = [row for row, missing in rows if not missing]
    return able, [(row, not_installed(missing)) for row, missing in rows if missing]


def some(rows: list[Any], only: str | None, texts: list[str]) -> list[Any]:
    """The rows. Raises ValueError where the pattern matches none, with the texts of all."""
    if not rows:
        raise ValueError(f"--only: no row contains {only!r}; the rows are: {'; '.join(texts)}")
    return rows


def about_machine(limits: machine.Limits | None = None) -> dict[str, Any]:
    return {"machine": machine.description(limits), "versions": machine.versions()}


def print_about(console: Console, about: dict[str, Any]) -> None:
    for title, facts in about.items():
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        console.print(f"{title}: {known}", highlight=False)


def print_left_out(console: Console, left_out: list[str]) -> None:
    for part in left_out:
        console.print(Text.assemble(("left out: ", "yellow"), part))


def print_quick(console: Console, quick: bool) -> None:
    if quick:
        console.print(f"[bold yellow]{QUICK}[/]")


def write_rows(
    rows: Rows,
    about: dict[str, Any],
    csv: Path | None,
    json: Path | None,
    *,
    quick: bool = False,
    left_out: list[str] | None = None,
) -> None:
    """The files of a study that writes them where the options say."""
    if csv is not None:
        write_csv(csv, marked(rows, quick))
    if json is not None:
        note = {"note": QUICK} if quick else {}
        write_json_file(json, {**note, **about, "rows": rows, "left_out": left_out or []})
    list_written(csv, json)


def publish(console: Console, folder: Path, name: str, rows: Rows, draw: Draw | None, *, quick: bool = False) -> None:
    """The rows as CSV and, where matplotlib is installed, the figure as PNG; a quick study has names of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{name}-quick" if quick else name
    csv, png = folder / f"{name}.csv", folder / f"{name}.png"
    write_csv(csv, marked(rows, quick))
    drawn = draw is not None and machine.installed("matplotlib")
    if draw is not None and drawn:
        from gqa_studies import plots

        figure = draw(plots)
        plots.saved(plots.marked(figure, QUICK) if quick else figure, png)
    elif draw is not None:
        print_left_out(console, [f"the figure: {not_installed(['matplotlib'])}"])
    list_written(csv, png if drawn else None)


def runs_folder(folder: Path, quick: bool) -> Path:
    """Where finished runs are kept."""
    return folder / ("runs-quick" if quick else "runs")


def marked(rows: Rows, quick: bool) -> Rows:
    return [{**row, "note": QUICK} for row in rows] if quick else rows

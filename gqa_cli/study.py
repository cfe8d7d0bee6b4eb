"""`gqa study`: what grouped-query attention costs on this machine, in time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from studies import machine, memory_peak, report, speed

study = typer.Typer(no_args_is_help=True, help="What it costs on this machine, in time and memory.")

Only = Annotated[str | None, typer.Option(metavar="PATTERN", help="Only rows whose text contains this; * and ? match.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try the study itself; the figures mean nothing.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the rows, the machine and the versions.")]


@study.command("speed")
def speed_study(
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 10.0,
    quick: Quick = False,
    csv_file: CsvFile = None,
    json_file: JsonFile = None,
) -> None:
    """Our fast paths against their peers, run in turn, pair by pair. Exit code 1 if a peer computes something else."""
    console = Console()
    chosen, left_out = _split([(row, speed.missing(row)) for row in speed.chosen(only, quick=quick)])
    left_out = [f"{row.text}: {reason}" for row, reason in left_out]
    wants_limits = any(row.wing == "torch" for row in chosen)
    limits = (machine.Limits(2**16, 64) if quick else machine.Limits()) if wants_limits else None
    about = {"machine": machine.description(limits), "versions": machine.versions()}

    figures, different = [], []
    for row in track(chosen, "speed", console=console):
        try:
            figures.append(speed.measure(row, limits, budget=0.0 if quick else seconds))
        except speed.DifferentFunction as error:
            different.append(f"{row.text}: another function: {error}")
    found = speed.as_rows(figures)
    console.print(report.speed_table(found))
    _finish(console, found, left_out + different, about, csv_file, json_file)
    raise typer.Exit(1 if different else 0)


@study.command("memory-peak")
def memory_peak_study(
    only: Only = None, quick: Quick = False, csv_file: CsvFile = None, json_file: JsonFile = None
) -> None:
    """The peak of memory above a long call's inputs, each wing in a process of its own."""
    console = Console()
    chosen, left_out = _split([(row, memory_peak.missing(row[0])) for row in memory_peak.rows(only)])
    left_out = [f"{memory_peak.name(*row)}: {reason}" for row, reason in left_out]
    about = {"machine": machine.description(None), "versions": machine.versions()}

    length = 256 if quick else memory_peak.LENGTH
    peaks = [memory_peak.measure(wing, load, length) for wing, load in track(chosen, "memory", console=console)]
    found = memory_peak.as_rows(peaks)
    console.print(report.memory_peak_table(found, length))
    _finish(console, found, left_out, about, csv_file, json_file)


def _split(rows: list[tuple[Any, list[str]]]) -> tuple[list[Any], list[Any]]:
    """The rows that can be run, and the others with the reason."""
    able = [row for row, missing in rows if not missing]
    return able, [(row, f"{' and '.join(missing)} not installed") for row, missing in rows if missing]


def _finish(
    console: Console, rows: report.Rows, left_out: list[str], about: dict[str, Any], csv: Path | None, json: Path | None
) -> None:
    for part in left_out:
        console.print(f"[yellow]left out: {part}[/]")
    for title, facts in about.items():
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        console.print(f"{title}: {known}", highlight=False)
    if csv is not None:
        report.write_csv(csv, rows)
    if json is not None:
        report.write_json(json, **about, rows=rows, left_out=left_out)

"""`gqa study speed` and `gqa study memory-peak`: the kernels alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from gqa.study.options import CsvFile, JsonFile, Only, Quick
from gqa.study.output import about_machine, finish, split
from gqa_studies import machine, memory_peak, speed, study_tables
from gqa_studies.rows import as_rows


def speed_study(
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 10.0,
    quick: Quick = False,
    csv_file: CsvFile = None,
    json_file: JsonFile = None,
) -> None:
    """Our fast paths against their peers, run in turn, pair by pair. Exit code 1 if a peer computes something else."""
    console = Console()
    chosen, missing = split([(row, speed.missing(row)) for row in speed.chosen(only, quick=quick)])
    left_out = [f"{row.text}: {reason}" for row, reason in missing]
    wants_limits = any(row.backend == "torch" for row in chosen)
    limits = (machine.Limits(2**16, 64) if quick else machine.Limits()) if wants_limits else None
    about = about_machine(limits)

    figures, different = [], []
    for row in track(chosen, "speed", console=console):
        try:
            figures.append(speed.measure(row, limits, budget=0.0 if quick else seconds))
        except speed.DifferentFunction as error:
            different.append(f"{row.text}: another function: {error}")
    found = speed.as_rows(figures)
    console.print(study_tables.speed_table(found))
    finish(console, found, left_out + different, about, csv_file, json_file)
    raise typer.Exit(1 if different else 0)


def memory_peak_study(
    only: Only = None, quick: Quick = False, csv_file: CsvFile = None, json_file: JsonFile = None
) -> None:
    """The peak of memory above a long call's inputs, each backend in a process of its own."""
    console = Console()
    chosen, missing = split([(row, memory_peak.missing(row[0])) for row in memory_peak.rows(only)])
    left_out = [f"{memory_peak.name(*row)}: {reason}" for row, reason in missing]
    about = about_machine()

    length = 256 if quick else memory_peak.LENGTH
    peaks = [memory_peak.measure(backend, load, length) for backend, load in track(chosen, "memory", console=console)]
    found = as_rows(peaks)
    console.print(study_tables.memory_peak_table(found, length))
    finish(console, found, left_out, about, csv_file, json_file)

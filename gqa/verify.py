"""`gqa verify`: the first stage at which two checkpoints differ."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from conformance.targets import BACKENDS
from conformance.targets.frameworks import available
from conformance.trace import models
from gqa.common import one_sentence, print_json, progress
from gqa.options import Json
from gqa_weights.port import open_model

ROWS = 12  # of the table: where everything differs, the first differences say why


def verify(
    a: Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    backends: Annotated[str, typer.Option(help="Which backend runs A and which runs B: numpy, torch, jax.")] = "",
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="What both compute in.")] = "float64",
    json: Json = False,
) -> None:
    """Run the attention of two checkpoints layer by layer in two backends, and name the first stage that differs.

    Exit code 1 on any difference, 2 where a checkpoint cannot be read.
    """
    with one_sentence():
        pair = _backends(backends)
        pair_of_models = open_model(a), open_model(b)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with progress(*columns) as bars:
            bar = bars.add_task("layers", total=models.steps(*pair_of_models))
            compared = models.verify(
                *pair_of_models, backends=pair, dtype=dtype, done=lambda size: bars.update(bar, advance=size)
            )
            verdicts = list(compared)
    if json:
        print_json(_as_json(verdicts, pair, dtype))
    else:
        _print(verdicts, f"A {a} in gqa_{pair[0]}, B {b} in gqa_{pair[1]}, {dtype}")
    raise typer.Exit(0 if all(verdict.same for verdict in verdicts) else 1)


def _backends(given: str) -> tuple[str, str]:
    """Two installed backends; NumPy and PyTorch unless given, or NumPy and JAX where PyTorch is not installed."""
    installed = [backend for backend in BACKENDS if available(backend)]
    pair = tuple(given.split(",")) if given else tuple([*installed, "numpy"][:2])
    for backend in pair:
        if backend not in installed:
            known = backend in BACKENDS
            raise ValueError(
                f"--backends: {backend} is not installed" if known else f"--backends: {backend!r} is not a backend"
            )
    if len(pair) != 2:
        raise ValueError(f"--backends: expected two of {', '.join(BACKENDS)} with a comma between, got {given!r}")
    return pair[0], pair[1]


def _print(verdicts: list[models.Verdict], title: str) -> None:
    console = Console()
    differing = [verdict for verdict in verdicts if not verdict.same]
    whole = any(verdict.place == "settings" for verdict in verdicts)
    layers = sum(verdict.place.startswith("layer ") for verdict in verdicts)
    if differing:
        table = Table(title=title, show_lines=True)
        for column in ("where", "first stage that differs", "what is known"):
            table.add_column(column, overflow="fold")
        for verdict in differing[:ROWS]:
            table.add_row(verdict.place, f"[red]{verdict.stage}[/]", verdict.reason)
        console.print(table)
        if len(differing) > ROWS:
            console.print(f"and {len(differing) - ROWS} more, all in --json", highlight=False)
        first = differing[0]
        console.print(f"first difference: {first.place}, {first.stage}", highlight=False)
        return
    worst = max(verdict.error for verdict in verdicts)
    console.print(title, highlight=False)
    console.print(
        f"[green]equal[/]: all stages of {layers} attention layers, at most {worst:.2g} of the largest value apart; "
        + ("all other weights and settings too" if whole else "the rest of this family's models is not compared"),
        highlight=False,
    )
    for verdict in verdicts:
        if verdict.place == "tensors not compared":
            console.print(f"{verdict.place}: {verdict.reason}", highlight=False)


def _as_json(verdicts: list[models.Verdict], backends: tuple[str, str], dtype: str) -> dict[str, Any]:
    rows = [{**asdict(v), "error": v.error if isfinite(v.error) else None, "same": v.same} for v in verdicts]
    differing = [row for row in rows if not row["same"]]
    return {
        "equal": not differing,
        "backends": list(backends),
        "dtype": dtype,
        "first_difference": differing[0] if differing else None,
        "verdicts": rows,
    }

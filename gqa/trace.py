"""`gqa trace`: the first stage at which two attentions differ, with the numbers and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import Arrays, Json, TimeLimit
from gqa.outputs import check_files

EITHER = "numpy, torch or jax (our backends), a public implementation by name, MODULE:NAME, or a checkpoint."


def trace(
    a: Annotated[str, typer.Argument(help=EITHER)],
    b: Annotated[str, typer.Argument(help="What A is compared with; a checkpoint with a backend or a checkpoint.")],
    case: Annotated[str | None, typer.Option(help="A case by name; else every feature until one differs.")] = None,
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="What both compute in.")] = "float32",
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Of two backends, compare the kernels, not the layers.")
    ] = False,
    arrays: Arrays = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the weights of both to this PNG.")] = None,
    time_limit: TimeLimit = None,
    json: Json = None,
) -> None:
    """Name the first stage at which A and B differ; both are compared with the float64 oracle.

    Exit code 1 where they differ, 2 where they cannot be compared.
    """
    with one_sentence():
        check_files({"--picture": picture, "--json": json})
        from gqa.trace_run import Wanted, trace_sides

        same = trace_sides(Wanted((a, b), case, dtype, kernel, arrays, time_limit), picture, json)
    raise typer.Exit(0 if same else 1)

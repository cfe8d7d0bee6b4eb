"""`gqa trace`: the first stage at which two attentions differ, with the numbers and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import Arrays, Json, TimeLimit
from gqa.outputs import check_files

EITHER = "numpy, torch or jax (our backends), a public implementation by name, MODULE:NAME, or a checkpoint."


def trace(
    a: Annotated[str | None, typer.Argument(help=EITHER)] = None,
    b: Annotated[
        str | None, typer.Argument(help="What A is compared with; a checkpoint with a backend or a checkpoint.")
    ] = None,
    case: Annotated[str | None, typer.Option(help="A case by name; else every feature until one differs.")] = None,
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="What both compute in.")] = "float32",
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Of two backends, compare the kernels, not the layers.")
    ] = False,
    arrays: Arrays = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the weights of both to this PNG.")] = None,
    time_limit: TimeLimit = None,
    hf: Annotated[
        str | None,
        typer.Option("--hf", metavar="MODEL", help="Instead of A and B: a transformers model, against eager."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="With --hf: what the model reads.")] = None,
    layer: Annotated[int | None, typer.Option(help="With --hf: every stage of this layer, counted from 0.")] = None,
    json: Json = None,
) -> None:
    """Name the first stage at which A and B differ; both are compared with the float64 oracle.

    Exit code 1 where they differ, 2 where they cannot be compared.
    """
    with one_sentence():
        check_files({"--picture": picture, "--json": json})
        if hf is not None:
            others = {"A": a, "--case": case, "--kernel": kernel or None, "--arrays": arrays, "--picture": picture}
            _refuse("does not apply to a transformers model, of which --hf traces every layer", others)
            from gqa.trace_hf import trace_hf

            raise typer.Exit(0 if trace_hf(hf, text, layer, json) else 1)
        _refuse("applies with --hf MODEL alone", {"--text": text, "--layer": layer})
        if a is None or b is None:
            raise ValueError("trace: expected A and B, such as `gqa trace torch my_module:MyAttention`, or --hf MODEL")
        from gqa.trace_run import Wanted, trace_sides

        same = trace_sides(Wanted((a, b), case, dtype, kernel, arrays, time_limit), picture, json)
    raise typer.Exit(0 if same else 1)


def _refuse(why: str, given: Mapping[str, object]) -> None:
    """Raises ValueError for an option that was given and cannot apply."""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{option}: {why}")

"""`gqa verify`: the first stage at which two checkpoints differ."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import Backends, Json
from gqa.outputs import STDOUT, check_files, list_written, write_json

if TYPE_CHECKING:
    from conformance.trace.models import Verdict

ROWS = 5  # on the screen: where everything differs, the first differences say why


def verify(
    a: Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    backend: Backends = None,
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="What both compute in.")] = "float64",
    json: Json = None,
) -> None:
    """Run the attention of two checkpoints layer by layer in two backends, and name the first stage that differs.

    Exit code 1 on any difference, 2 where a checkpoint cannot be read.
    """
    with one_sentence():
        check_files({"--json": json})
        from gqa.backends import two_backends

        pair = two_backends(backend or [])
        verdicts = _verdicts(a, b, pair, dtype)
        if json != STDOUT:
            _print(verdicts, (str(a), str(b)), pair, dtype)
        if json is not None:
            write_json(json, _as_json(verdicts, pair, dtype))
        list_written(json)
    raise typer.Exit(0 if all(verdict.same for verdict in verdicts) else 1)


def _verdicts(a: Path, b: Path, pair: tuple[str, str], dtype: str) -> list[Verdict]:
    from conformance.trace import models
    from gqa.progress import counted
    from gqa_weights.port import open_model

    opened = open_model(a), open_model(b)
    with counted("layers", models.steps(*opened)) as advance:
        return list(models.verify(*opened, backends=pair, dtype=dtype, done=advance))


def _print(verdicts: list[Verdict], names: tuple[str, str], backends: tuple[str, str], dtype: str) -> None:
    """The verdict first, then the first places that differ."""
    from rich.console import Console
    from rich.text import Text

    from gqa.lines import Indented

    console = Console(highlight=False)
    differing = [verdict for verdict in verdicts if not verdict.same]
    console.print(_equal(verdicts) if not differing else _different(differing, len(verdicts)))
    for side, name, backend in zip("AB", names, backends, strict=True):
        console.print(Text(f"{side} {name} in gqa_{backend}, {dtype}"))
    for verdict in differing[:ROWS]:
        console.print(Text(f"\n{verdict.place}, {verdict.stage}", style="red"))
        console.print(Indented(verdict.reason))
    for verdict in verdicts:
        if verdict.place == "tensors not compared":
            console.print(Indented(f"{verdict.place}: {verdict.reason}"))
    if len(differing) > ROWS:
        console.print(f"\nand {len(differing) - ROWS} more, all with --json FILE")


def _equal(verdicts: list[Verdict]) -> str:
    whole = any(verdict.place == "settings" for verdict in verdicts)
    layers = sum(verdict.place.startswith("layer ") for verdict in verdicts)
    worst = max(verdict.error for verdict in verdicts)
    rest = "all other weights and settings too" if whole else "the rest of this family's models is not compared"
    return (
        f"[bold green]EQUAL[/]  all stages of {layers} attention layers, "
        f"at most {worst:.2g} of the largest value apart; {rest}"
    )


def _different(differing: list[Verdict], total: int) -> str:
    first = differing[0]
    return f"[bold red]DIFFERS[/]  first difference: {first.place}, {first.stage}; {len(differing)} of {total} differ"


def _as_json(verdicts: list[Verdict], backends: tuple[str, str], dtype: str) -> dict[str, Any]:
    rows = [{**asdict(v), "error": v.error if isfinite(v.error) else None, "same": v.same} for v in verdicts]
    differing = [row for row in rows if not row["same"]]
    return {
        "equal": not differing,
        "backends": list(backends),
        "dtype": dtype,
        "first_difference": differing[0] if differing else None,
        "verdicts": rows,
    }

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
    from rich.text import Text

    from conformance.trace.models import Verdict

KINDS = ("not the same model", "pooled: lossy")  # of differences, said first
ROWS = 5  # on the screen: where everything differs, the first differences say why


def verify(
    a: Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")],
    b: Annotated[Path | None, typer.Argument(help="Another one of the same model; none with --against.")] = None,
    backend: Backends = None,
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="What both compute in.")] = "float64",
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare stored weights and settings alone, bit for bit; run nothing.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Instead of B: other code for A's model, transformers or MODULE:NAME."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --against: the text that both read; one is built in.")
    ] = None,
    json: Json = None,
) -> None:
    """Compare the stored weights of two checkpoints bit for bit, run their attention, and name what differs first.

    Layer by layer, A in one backend and B in another: the first stage that differs is named.

    With --against, A runs beside other code: hidden states after each block,
    then logits. MODULE:NAME is a function of tokens, an array (1, T), that
    returns logits (1, T, V), or a pair of logits and the states after the
    embedding and after each block.

    Exit code 1 on any difference, 2 where a checkpoint cannot be read.
    """
    with one_sentence():
        check_files({"--json": json})
        from gqa_weights.hub import local

        a, b = local(a), b if b is None else local(b)
        if against is not None:
            _alone(b, exact)
            from gqa.against import against_code

            raise typer.Exit(0 if against_code(a, against, text, backend or [], dtype, json) else 1)
        if text is not None:
            raise ValueError("--text: applies with --against alone")
        if b is None:
            raise ValueError("verify: expected A and B, such as `gqa verify model/ ported/`, or --against transformers")
        from gqa.backends import two_backends

        pair = two_backends(backend or [])
        verdicts = _verdicts(a, b, pair, dtype, exact)
        if json != STDOUT:
            runs = [""] * 2 if exact else [f" in gqa_{name}, {dtype}" for name in pair]
            _print(verdicts, [f"{side} {path}{run}" for side, path, run in zip("AB", (a, b), runs, strict=True)], exact)
        if json is not None:
            write_json(json, {**_as_json(verdicts, pair, dtype), "exact": exact})
        list_written(json)
    raise typer.Exit(0 if all(verdict.same for verdict in verdicts) else 1)


def _alone(b: Path | None, exact: bool) -> None:
    """Raises ValueError for what cannot be given beside --against."""
    if b is not None:
        raise ValueError(f"--against: expected A alone, got B, {b}, too")
    if exact:
        raise ValueError("--exact: compares stored weights, of which other code has none; leave it out with --against")


def _verdicts(a: Path, b: Path, pair: tuple[str, str], dtype: str, exact: bool) -> list[Verdict]:
    from conformance.trace import models
    from gqa.progress import counted
    from gqa_weights.port import open_model

    opened = open_model(a), open_model(b)
    with counted("layers", models.steps(*opened)) as advance:
        return list(models.verify(*opened, backends=pair, dtype=dtype, exact=exact, done=advance))


def _print(verdicts: list[Verdict], sides: list[str], exact: bool) -> None:
    """The verdict first, then the first places that differ."""
    from rich.console import Console

    from gqa.lines import Indented, plain

    console = Console(highlight=False)
    differing = [verdict for verdict in verdicts if not verdict.same]
    console.print(_equal(verdicts, exact) if not differing else _different(differing, len(verdicts)))
    for side in sides:
        console.print(plain(side))
    for verdict in differing[:ROWS]:
        place = plain(f"{verdict.place}, {verdict.stage}")
        place.stylize("red")
        console.print()
        console.print(place)
        console.print(Indented(verdict.reason))
    for verdict in verdicts:
        if verdict.same and verdict.reason:
            console.print(Indented(f"{verdict.place}: {verdict.reason}"))
    if len(differing) > ROWS:
        console.print(f"\nand {len(differing) - ROWS} more, all with --json FILE")


def _equal(verdicts: list[Verdict], exact: bool) -> Text:
    from gqa.lines import plain

    whole = any(verdict.place == "settings" for verdict in verdicts)
    layers = sum(verdict.place.startswith("layer ") for verdict in verdicts)
    worst = max(verdict.error for verdict in verdicts)
    rest = "all other weights and settings too" if whole else "the rest of this family's models is not compared"
    stages = "" if exact else f", all stages at most {worst:.2g} of the largest value apart"
    text = plain(f"EQUAL  stored weights of {layers} attention layers bit for bit{stages}; {rest}")
    text.stylize("bold green", 0, len("EQUAL"))
    return text


def _different(differing: list[Verdict], total: int) -> Text:
    from gqa.lines import plain

    first = differing[0]
    kind = next((f"{known}; " for known in KINDS if first.reason.startswith(known)), "")
    text = plain(f"DIFFERS  {kind}first difference: {first.place}, {first.stage}; {len(differing)} of {total} differ")
    text.stylize("bold red", 0, len("DIFFERS"))
    return text


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

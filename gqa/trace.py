"""`gqa trace`: the first stage at which two attentions part, with the numbers and a picture."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conformance.checks.judge import TIME_LIMIT
from conformance.report import picture
from conformance.targets import BACKENDS, NotATarget, Unsupported
from conformance.targets.frameworks import available, quick_to_compile
from conformance.targets.worker import Worker
from conformance.trace.compare import BackendSide, Compared, Side, Trace, model_traces, target_side, traces
from gqa.common import one_sentence
from gqa.options import Arrays, Json
from gqa_weights.port import open_model

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
    image: Annotated[Path | None, typer.Option("--picture", help="Draw the weights of both to this PNG.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that a target may take for one case.")] = TIME_LIMIT,
    json: Json = False,
) -> None:
    """Name the first stage at which A and B part; both are held against the float64 oracle.

    Exit code 1 where they differ, 2 where they cannot be compared.
    """
    quick_to_compile()
    with one_sentence(), ExitStack() as stack:
        try:
            compared = _traces(stack, (a, b), case, dtype, kernel or None, arrays, time_limit)
            agreed, found = _until_different(compared)
        except (NotATarget, Unsupported) as error:
            raise ValueError(str(error)) from error
        shown = picture.place(*found.arrays, ("weights", found.first.stage if found.first else "output"))
        if json:
            typer.echo(jsonlib.dumps(_as_json(found, agreed, shown), indent=1, allow_nan=False))
        else:
            _print(found, agreed, shown)
        if image is not None and shown is not None:
            picture.draw(shown, found.names, f"{found.case}, {found.dtype}", image)
            typer.echo(f"picture: {image}", err=json)
    raise typer.Exit(0 if found.same else 1)


def _traces(
    stack: ExitStack, names: tuple[str, str], case: str | None, dtype: str, kernel: bool | None,
    arrays: str | None, limit: float,
) -> Iterator[Trace]:  # fmt: skip
    models = [name for name in names if _is_checkpoint(name)]
    if not models:
        sides = tuple(_side(stack, name, arrays, limit) for name in names)
        return traces((sides[0], sides[1]), case, dtype, kernel)
    others = [name for name in names if name not in models]
    if others and others[0] not in BACKENDS:
        raise ValueError(f"trace: expected a backend or a checkpoint beside {models[0]}, got {others[0]!r}")
    first, second = open_model(Path(models[0])), open_model(Path(models[-1]))
    backends = ("numpy", others[0]) if others else ("numpy", "torch" if available("torch") else "numpy")
    return model_traces(first, second, backends, dtype)


def _is_checkpoint(name: str) -> bool:
    return name not in BACKENDS and Path(name).exists()


def _side(stack: ExitStack, name: str, arrays: str | None, limit: float) -> Side:
    if name in BACKENDS:
        if not available(name):
            raise ValueError(f"trace: {name} is not installed")
        return BackendSide(name)
    return target_side(stack.enter_context(Worker(name, arrays, limit)))


def _until_different(compared: Iterator[Trace]) -> tuple[list[str], Trace]:
    """The cases that agreed, and the one to show: the first that does not, or the last."""
    agreed: list[str] = []
    for found in compared:
        if not found.same:
            return agreed, found
        agreed.append(found.case)
    if not agreed:
        raise ValueError("trace: there is no case that both support")
    return agreed, found


def _print(found: Trace, agreed: list[str], shown: picture.Place | None) -> None:
    console = Console()
    title = f"A {found.names[0]}, B {found.names[1]}\n{found.case}, {found.dtype}"
    table = Table(title=escape(title), caption="errors relative to the stage's largest value")
    table.add_column("stage")
    table.add_column("shape")
    for name in ("A ~ oracle", "B ~ oracle", "A ~ B"):
        table.add_column(name, justify="right")
    for stage in found.compared:
        style = "bold red" if stage == found.first else "red" if stage.reason else "green"
        table.add_row(stage.stage, str(stage.shape), *map(_number, (*stage.errors, stage.between)), style=style)
    if found.compared:
        console.print(table)
    for line in _words(found, agreed, shown):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _words(found: Trace, agreed: list[str], shown: picture.Place | None) -> Iterator[str]:
    if found.same:
        yield f"no difference: {len(agreed)} compared"
        return
    if agreed:
        yield f"agreed before: {len(agreed)}, the last {agreed[-1]}"
    if found.fault:
        yield f"no answer: {found.case}: {found.fault}"
    if found.first is not None:
        yield f"first stage that differs: {found.case}, {found.first.stage}; {found.first.reason}"
    if found.explanation:
        yield found.explanation
    if shown is not None:
        where = ", ".join(f"{axis} {i}" for axis, i in zip(shown.axes, shown.index, strict=True))
        a, b = shown.numbers
        yield f"{shown.stage} differ most at {where}: {found.names[0]} {a:.6g}, {found.names[1]} {b:.6g}"


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"


def _as_json(found: Trace, agreed: list[str], shown: picture.Place | None) -> dict[str, Any]:
    return {
        "a": found.names[0],
        "b": found.names[1],
        "case": found.case,
        "dtype": found.dtype,
        "same": found.same,
        "agreed": agreed,
        "fault": found.fault,
        "explanation": found.explanation,
        "first": None if found.first is None else found.first.stage,
        "stages": [_row(stage) for stage in found.compared],
        "differ_most": None if shown is None else _where(shown),
    }


def _row(stage: Compared) -> dict[str, Any]:
    a, b, between = (None if x is None or not isfinite(x) else x for x in (*stage.errors, stage.between))
    return {"stage": stage.stage, "shape": stage.shape, "a": a, "b": b, "between": between, "reason": stage.reason}


def _where(shown: picture.Place) -> dict[str, Any]:
    a, b = (x if isfinite(x) else None for x in shown.numbers)
    return {"stage": shown.stage, "axes": shown.axes, "index": shown.index, "a": a, "b": b}

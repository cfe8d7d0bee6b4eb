"""What `gqa trace` compares and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from conformance.checks.judge import TIME_LIMIT
from conformance.report import picture
from conformance.targets import BACKENDS, NotATarget, Unsupported
from conformance.targets.frameworks import available, quick_to_compile
from conformance.targets.worker import Worker
from conformance.trace.compare import BackendSide, Compared, Side, Trace, model_traces, target_side, traces
from gqa.backends import backend_name
from gqa.interrupt import silence_children
from gqa.lines import Indented
from gqa.outputs import STDOUT, list_written, write_json
from gqa.progress import bars
from gqa.targets import check_target
from gqa_weights.port import open_model


@dataclass(frozen=True)
class Wanted:
    """What is compared, as the options say it."""

    names: tuple[str, str]
    case: str | None
    dtype: str
    kernel: bool
    arrays: str | None
    limit: float | None


def trace_sides(wanted: Wanted, image: Path | None, json: Path | None) -> bool:
    """Print the first case and stage at which the two differ; whether they are the same."""
    silence_children()
    quick_to_compile()
    with ExitStack() as stack:
        try:
            with bars() as progress:
                bar = progress.add_task("cases", total=None)
                compared = _traces(stack, wanted)
                agreed, found = _until_different(compared, lambda: progress.update(bar, advance=1))
        except (NotATarget, Unsupported) as error:
            raise ValueError(str(error)) from error
    shown = picture.place(*found.arrays, ("weights", found.first.stage if found.first else "output"))
    if json != STDOUT:
        _print(found, agreed, shown, _titles(wanted.names, found, in_full=True))
    if json is not None:
        write_json(json, _as_json(found, agreed, shown))
    drawn = image is not None and shown is not None
    if image is not None and shown is not None:
        title = found.explanation or (found.first.reason if found.first else "no difference")
        picture.draw(shown, _titles(wanted.names, found), f"{title}\n{found.case}, {found.dtype}", image)
    list_written(json, image if drawn else None)
    return found.same


def _traces(stack: ExitStack, wanted: Wanted) -> Iterator[Trace]:
    models = [name for name in wanted.names if _is_checkpoint(name)]
    if not models:
        sides = tuple(_side(stack, name, wanted) for name in wanted.names)
        return traces((sides[0], sides[1]), wanted.case, wanted.dtype, wanted.kernel or None)
    _refuse_for_checkpoints(wanted)
    others = [name for name in wanted.names if name not in models]
    if others and others[0] not in BACKENDS:
        raise ValueError(f"trace: expected a backend or a checkpoint beside {models[0]}, got {others[0]!r}")
    first, second = open_model(Path(models[0])), open_model(Path(models[-1]))
    backends = ("numpy", others[0]) if others else ("numpy", "torch" if available("torch") else "numpy")
    return model_traces(first, second, backends, wanted.dtype)


def _refuse_for_checkpoints(wanted: Wanted) -> None:
    given = {"--case": wanted.case, "--kernel": wanted.kernel, "--arrays": wanted.arrays}
    for option, value in given.items():
        if value:
            raise ValueError(f"{option}: does not apply to checkpoints, whose layers are compared one by one")


def _is_checkpoint(name: str) -> bool:
    return name not in BACKENDS and Path(name).exists()


def _side(stack: ExitStack, name: str, wanted: Wanted) -> Side:
    if name in BACKENDS:
        return BackendSide(backend_name(name))
    check_target("trace", name)
    limit = TIME_LIMIT if wanted.limit is None else wanted.limit
    return target_side(stack.enter_context(Worker(name, wanted.arrays, limit)))


def _until_different(compared: Iterator[Trace], done: Callable[[], None]) -> tuple[list[str], Trace]:
    """The cases that agreed, and the one to show: the first that does not, or the last. `done` is called after each."""
    agreed: list[str] = []
    for found in compared:
        if not found.same:
            return agreed, found
        agreed.append(found.case)
        done()
    if not agreed:
        raise ValueError("trace: there is no case that both support")
    return agreed, found


def _titles(names: tuple[str, str], found: Trace, *, in_full: bool = False) -> tuple[str, str]:
    """The names of A and B; a checkpoint has that of its file."""
    a, b = (
        f"{name if in_full else Path(name).name} in {title.rpartition(' in ')[2]}" if _is_checkpoint(name) else title
        for name, title in zip(names, found.names, strict=True)
    )
    return a, b


def _print(found: Trace, agreed: list[str], shown: picture.Place | None, titles: tuple[str, str]) -> None:
    """The verdict, what is known of the difference, and the stages with their errors."""
    console = Console(highlight=False)
    console.print(_verdict(found, agreed))
    for side, name in zip("AB", titles, strict=True):
        console.print(Text(f"{side} {name}"))
    for line in _words(found, agreed, shown):
        console.print(Indented(line))
    if found.compared:
        console.print(_table(found))


def _verdict(found: Trace, agreed: list[str]) -> str:
    if found.same:
        return f"[bold green]AGREE[/]  no difference: {len(agreed)} compared, {found.dtype}"
    if found.first is None:
        return f"[bold red]NO ANSWER[/]  {escape(found.case)}, {found.dtype}"
    return f"[bold red]DIFFER[/]  first stage that differs: {escape(found.case)}, {found.first.stage}"


def _table(found: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="errors relative to the stage's largest value")
    table.add_column(f"stage, {found.dtype}", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for name in ("A ~ oracle", "B ~ oracle", "A ~ B"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in found.compared:
        style = "bold red" if stage == found.first else "red" if stage.reason else "green"
        table.add_row(stage.stage, str(stage.shape), *map(_number, (*stage.errors, stage.between)), style=style)
    return table


def _words(found: Trace, agreed: list[str], shown: picture.Place | None) -> Iterator[str]:
    if found.same:
        return
    if found.fault:
        yield f"no answer: {found.case}: {found.fault}"
    if found.first is not None:
        yield found.first.reason
    if found.explanation:
        yield found.explanation
    if shown is not None:
        where = ", ".join(f"{axis} {i}" for axis, i in zip(shown.axes, shown.index, strict=True))
        a, b = shown.numbers
        yield f"{shown.stage} differ most at {where}: A {a:.6g}, B {b:.6g}"
    if agreed:
        yield f"agreed before: {len(agreed)}, the last {agreed[-1]}"


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

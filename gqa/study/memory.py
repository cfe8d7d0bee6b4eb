"""`gqa study memory`: what a KV cache takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gqa.errors import one_sentence
from gqa.outputs import check_folder
from gqa.study.options import RESULTS, Folder


def memory_study(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A published model or a checkpoint's path; may be given again. All published, if none."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Of a model of your own; 32 unless given.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Query heads of a model of your own; 32 unless given.")] = None,
    num_kv_heads: Annotated[
        str | None, typer.Option(metavar="K,K,...", help="What-if: the KV heads to compare, as 32,8,4,1.")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(help="Head size of your own model; 128 unless given.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in the cache; the model's own, or 8192 unless given.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows in the cache.")] = 1,
    bytes_: Annotated[
        float, typer.Option("--bytes", help="Bytes of a number in the cache; fractions too, 0.5 is 4 bits.")
    ] = 2.0,
    gibibytes: Annotated[float, typer.Option(help="Memory that is left for the cache, beside the weights.")] = 16.0,
    folder: Folder = RESULTS,
) -> None:
    """What a KV cache takes, and the batch and context that fit, for each number of KV heads. Arithmetic alone.

    With --num-heads, --layers, --num-kv-heads, ...: a model of your own, or what-if K for one --model.
    Without: LLaMA-7B with fewer KV heads, and published models as they are.
    """
    with one_sentence():
        check_folder("--folder", folder)
        _check_amounts(bytes_, gibibytes)
        from gqa.study import memory_run

        own = {"--layers": layers, "--num-heads": num_heads, "--head-dim": head_dim}
        given = [option for option, value in own.items() if value is not None]
        if model and given:
            raise ValueError(f"{given[0]}: describes a model of your own, and --model {model[0]} is given")
        what: dict[str, Any] = {"batch": batch, "element": bytes_, "gibibytes": gibibytes, "folder": folder}
        if given or num_kv_heads or (context is not None and not model):
            memory_run.compare_choices(model, (layers, num_heads, head_dim), _integers(num_kv_heads), context, **what)
        elif context is not None:
            raise ValueError("--context: applies to a model of your own or to --num-kv-heads, and neither is given")
        else:
            memory_run.published(model, **what)


def _check_amounts(element: float, gibibytes: float) -> None:
    for option, amount in (("--bytes", element), ("--gibibytes", gibibytes)):
        if not amount > 0:
            raise ValueError(f"{option}: expected more than 0, got {amount:g}")


def _integers(given: str | None) -> list[int] | None:
    if given is None:
        return None
    try:
        return [int(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"--num-kv-heads: expected integers with commas between, as 32,8,4,1, got {given!r}") from None

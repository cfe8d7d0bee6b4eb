"""`gqa pool` and `gqa expand`: fewer KV heads, and more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gqa.common import one_sentence
from gqa.options import Force, Json
from gqa.port import report, write_with_bar
from gqa_weights.port import plan_expanded, plan_pooled

Source = Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")]
Dest = Annotated[Path, typer.Argument(help="A folder, or a file .safetensors or .npz; one that exists needs --force.")]


def pool(
    source: Source,
    dest: Dest,
    num_kv_heads: Annotated[int, typer.Option(help="KV heads of each layer afterwards; divides those of now.")],
    method: Annotated[
        Literal["mean", "first", "random"], typer.Option(help="What replaces a group of KV heads.")
    ] = "mean",
    seed: Annotated[int, typer.Option(help="For --method random.")] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn multi-head into grouped-query attention by pooling KV heads. Lossy: the result needs further training."""
    with one_sentence():
        planned = plan_pooled(source, num_kv_heads, method, seed)
        write_with_bar(planned, dest, force, "pool")
    report(planned, dest, json)


def expand(
    source: Source,
    dest: Dest,
    num_kv_heads: Annotated[int | None, typer.Option(help="KV heads afterwards; num_heads unless given.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn grouped-query into multi-head attention by repeating KV heads. Lossless."""
    with one_sentence():
        planned = plan_expanded(source, num_kv_heads)
        write_with_bar(planned, dest, force, "expand")
    report(planned, dest, json)

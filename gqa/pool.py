"""`gqa pool` and `gqa expand`: fewer KV heads, and more."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import DryRun, Force, Json, NoChecksums, ShardSize
from gqa.port import Dest, Source
from gqa.writing import Writing


def pool(
    source: Source,
    dest: Dest,
    num_kv_heads: Annotated[int, typer.Option(help="KV heads of each layer afterwards; divides those of now.")],
    method: Annotated[
        Literal["mean", "first", "random"], typer.Option(help="What replaces a group of KV heads.")
    ] = "mean",
    seed: Annotated[int | None, typer.Option(help="For --method random; 0 unless given.")] = None,
    force: Force = False,
    shard_size: ShardSize = None,
    no_checksums: NoChecksums = False,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Turn multi-head into grouped-query attention by pooling KV heads. Lossy: the result needs further training."""
    with one_sentence():
        if seed is not None and method != "random":
            raise ValueError(f"--seed: applies to --method random alone, got --method {method}")
        from gqa_weights.hub import local
        from gqa_weights.port import plan_pooled

        writing = Writing(dest, force, shard_size, not no_checksums, dry_run, json)
        writing.run(lambda: plan_pooled(local(source), num_kv_heads, method, seed or 0), "pool")


def expand(
    source: Source,
    dest: Dest,
    num_kv_heads: Annotated[int | None, typer.Option(help="KV heads afterwards; num_heads unless given.")] = None,
    force: Force = False,
    shard_size: ShardSize = None,
    no_checksums: NoChecksums = False,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Turn grouped-query into multi-head attention by repeating KV heads. Lossless."""
    with one_sentence():
        from gqa_weights.hub import local
        from gqa_weights.port import plan_expanded

        writing = Writing(dest, force, shard_size, not no_checksums, dry_run, json)
        writing.run(lambda: plan_expanded(local(source), num_kv_heads), "expand")

"""`gqa port`: a checkpoint in another layout, and a manifest of the layout's conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gqa.errors import one_of, one_sentence
from gqa.options import DryRun, Force, Json, NoChecksums, ShardSize
from gqa.writing import Writing

Source = Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")]
Dest = Annotated[
    Path, typer.Argument(help="A folder, or a file .safetensors, .npz, .gguf; --force for one that exists.")
]
Stored = Annotated[
    Literal["float64", "float32", "float16", "bfloat16", "q8_0"] | None,
    typer.Option(
        metavar="DTYPE",
        help="float64, float32, float16, bfloat16, for every tensor; q8_0 in .gguf; or kept.",
    ),
]
# Words that people use -> the name of the layout.
ALSO = {"hf": "huggingface", "transformers": "huggingface", "nnx": "flax", "llama2": "meta"}


def port(
    source: Source,
    dest: Dest,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="LAYOUT", help="huggingface, meta, flax, keras, a family's name; gguf: .gguf"),
    ] = None,
    dtype: Stored = None,
    ignore_setting: Annotated[
        list[str] | None, typer.Option("--ignore-setting", metavar="KEY", help="Pass over a setting of the source.")
    ] = None,
    force: Force = False,
    shard_size: ShardSize = None,
    no_checksums: NoChecksums = False,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Write a checkpoint in another layout, one tensor in memory at a time. `gqa verify SOURCE DEST` proves it."""
    with one_sentence():
        from gqa_weights.hub import local
        from gqa_weights.port import TARGETS, plan

        if to is None and dest.suffix != ".gguf":
            raise ValueError("--to: expected a layout, such as huggingface, got none: only a DEST .gguf says it alone")
        layout = one_of("--to", "gguf" if to is None else to, TARGETS, ALSO)
        writing = Writing(dest, force, shard_size, not no_checksums, dry_run, json)
        writing.run(lambda: plan(local(source), layout, dtype, ignore_setting or ()), "port")

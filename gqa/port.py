"""`gqa port`: a checkpoint in another layout, and a manifest of the layout's conventions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gqa.errors import one_of, one_sentence
from gqa.options import Force, Json
from gqa.outputs import STDOUT, check_files, check_new, list_written, write_json

if TYPE_CHECKING:
    from gqa_weights.port import Plan

Source = Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")]
Dest = Annotated[Path, typer.Argument(help="A folder, or a file .safetensors or .npz; one that exists needs --force.")]
Stored = Annotated[
    Literal["float64", "float32", "float16", "bfloat16"] | None,
    typer.Option(help="What every tensor is stored in; kept unless given."),
]
# Words that people use -> the name of the layout.
ALSO = {"hf": "huggingface", "transformers": "huggingface", "nnx": "flax", "llama2": "meta"}
# Of the manifest, what fits a line.
STATED = ("num_heads", "num_kv_heads", "head_dim", "pairing", "head_order", "fused", "scale", "qk_norm", "window")


def port(
    source: Source,
    dest: Dest,
    to: Annotated[
        str, typer.Option("--to", metavar="LAYOUT", help="huggingface, meta, flax, keras, or a family's own name.")
    ],
    dtype: Stored = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Write a checkpoint in another layout, one tensor in memory at a time. `gqa verify SOURCE DEST` proves it."""
    with one_sentence():
        from gqa_weights.port import TARGETS, plan

        layout = one_of("--to", to, TARGETS, ALSO)
        write_planned(lambda: plan(source, layout, dtype), dest, force, json, "port")


def write_planned(plan: Callable[[], Plan], dest: Path, force: bool, json: Path | None, task: str) -> None:
    """Refuse what cannot be written, then plan, write and report."""
    check_new("DEST", dest, force)
    check_files({"--json": json})
    from gqa.progress import bytes_bar
    from gqa_weights.port import write

    planned = plan()
    with bytes_bar(task, planned.nbytes) as advance:
        write(planned, dest, force=force, done=advance)
    if json != STDOUT:
        _report(planned, dest)
    if json is not None:
        found: dict[str, Any] = {"path": str(dest), "bytes": planned.nbytes, "manifest": planned.manifest}
        write_json(json, found)
    list_written(dest, json)


def _report(planned: Plan, dest: Path) -> None:
    typer.echo(f"{planned.manifest['layout']}, {len(planned.tensors)} tensors, {planned.nbytes:,} bytes")
    for layers in planned.manifest["attention"]:
        stated = ", ".join(f"{name} {layers[name]}" for name in STATED if layers[name])
        typer.echo(f"{len(layers['layers'])} layers: {stated}")
    if dest.is_dir():
        typer.echo(f"every convention is in {dest / 'gqa_manifest.json'}")

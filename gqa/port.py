"""`gqa port`: a checkpoint in another layout, and a manifest of the layout's conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gqa.common import bytes_bar, one_sentence, print_json
from gqa.options import Force, Json
from gqa_weights.port import TARGETS, Plan, plan, write

# Of the manifest, what fits a line.
STATED = ("num_heads", "num_kv_heads", "head_dim", "pairing", "head_order", "fused", "scale", "qk_norm", "window")


def port(
    source: Annotated[Path, typer.Argument(help="A checkpoint: a file or a folder.")],
    dest: Annotated[
        Path, typer.Argument(help="A folder, or a file .safetensors or .npz; one that exists needs --force.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="LAYOUT", help=f"One of {', '.join(TARGETS)}.")],
    dtype: Annotated[str | None, typer.Option(help="float64, float32, float16, bfloat16; kept unless given.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a checkpoint in another layout, one tensor in memory at a time. `gqa verify SOURCE DEST` proves it."""
    with one_sentence():
        planned = plan(source, to, dtype)
        write_with_bar(planned, dest, force, "port")
    report(planned, dest, json)


def write_with_bar(planned: Plan, dest: Path, force: bool, task: str) -> None:
    with bytes_bar() as progress:
        bar = progress.add_task(task, total=planned.nbytes)
        write(planned, dest, force=force, done=lambda size: progress.update(bar, advance=size))


def report(planned: Plan, dest: Path, as_json: bool) -> None:
    found: dict[str, Any] = {"path": str(dest), "bytes": planned.nbytes, "manifest": planned.manifest}
    if as_json:
        print_json(found)
        return
    console = Console()
    console.print(f"{dest}: {planned.manifest['layout']}, {len(planned.tensors)} tensors", highlight=False)
    for layers in planned.manifest["attention"]:
        stated = ", ".join(f"{name} {layers[name]}" for name in STATED if layers[name])
        console.print(f"{len(layers['layers'])} layers: {stated}", highlight=False)
    console.print(f"every convention is in {dest / 'gqa_manifest.json'}" if dest.is_dir() else "", highlight=False)

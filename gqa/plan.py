"""`gqa plan`: what a model costs on a mesh of devices."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import Json
from gqa.outputs import STDOUT, check_files, list_written, write_json

if TYPE_CHECKING:
    from gqa_spec import ModelConfig
    from gqa_spec.mesh_plan import Mesh, MeshPlan

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(
    config: Annotated[Path, typer.Argument(help="A config.json, its folder, or a checkpoint; no weights are read.")],
    tensor: Annotated[int, typer.Option(min=1, help="Devices over which heads and feed-forward are cut.")] = 1,
    data: Annotated[int, typer.Option(min=1, help="Devices over which rows and stored weights are split (FSDP).")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Devices over which the tokens of a row are split.")] = 1,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row; the model's own unless given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of each part of the data axis.")] = 1,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="What weights and cache are stored in.")
    ] = "bfloat16",
    json: Json = None,
) -> None:
    """Bytes per device and bytes on the wire for a model on a mesh of devices. Arithmetic from the config alone."""
    with one_sentence():
        check_files({"--json": json})
        from gqa_spec.mesh_plan import Mesh, mesh_plan

        model, mesh = _read(config), Mesh(tensor, data, context)
        tokens = length or model.max_length
        if tokens is None:
            raise ValueError("--length: the config states no length; give one")
        found = mesh_plan(model, mesh, length=tokens, batch_size=batch, element=BYTES[dtype])
        if json != STDOUT:
            _print(model, mesh, found, tokens, batch, dtype)
        if json is not None:
            write_json(json, asdict(found) | {"length": tokens, "batch": batch, "dtype": dtype})
        list_written(json)


def _read(path: Path) -> ModelConfig:
    from gqa_weights.checkpoint import open_checkpoint
    from gqa_weights.families import read_config

    return read_config(open_checkpoint(path.parent if path.name == "config.json" else path))


def _print(model: ModelConfig, mesh: Mesh, found: MeshPlan, length: int, batch: int, dtype: str) -> None:
    from rich.console import Console
    from rich.table import Table

    layer, console = model.attention[0], Console(highlight=False)
    console.print(
        f"{found.parameters / 1e9:.2f} billion weights, {model.num_layers} layers, N {layer.num_heads}, "
        f"K {layer.num_kv_heads}, {dtype}"
    )
    console.print(
        f"{found.devices:,} devices: tensor {mesh.tensor} x data {mesh.data} x context {mesh.context}; "
        f"{batch} x {length:,} tokens\n"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, amount, note in _lines(mesh, found):
        table.add_row(name, amount, note)
    console.print(table)
    several = f"each KV head is on {found.kv_head_copies} devices"
    copies = several if found.kv_head_copies > 1 else "no KV head is copied"
    console.print(f"\n{copies}; the largest --tensor without copies is K = {found.largest_tensor}")


def _lines(mesh: Mesh, found: MeshPlan) -> list[tuple[str, str, str]]:
    lines = [("each device holds", "", ""), ("  weights", _size(found.stored_weights), "")]
    if mesh.data > 1:
        lines.append(("  of which one pass uses", _size(found.weights), "gathered block by block"))
    if found.weights_of_own_heads != found.weights:
        lines.append(("  serving", _size(found.weights_of_own_heads), "with the KV heads that it reads"))
    lines += [
        ("  KV cache", _size(found.cache), f"{_size(found.cache_per_token)} a token"),
        ("  gradients", _size(found.gradients), "when training"),
        ("  optimizer", _size(found.optimizer), "AdamW's moments, a float32 copy"),
        ("each device sends", "nothing" if mesh.devices == 1 else "", ""),
        ("  per token", _size(found.wire_per_token), f"forward: {found.all_reduces} all-reduces of D numbers"),
        ("  per step, tensor", _size(found.wire_tensor), "the same forward and backward, for all tokens"),
        ("  per step, data", _size(found.wire_data), "weights gathered twice, gradients scattered"),
        ("  per step, context", _size(found.wire_context), "keys, values and gradients"),
    ]
    return [line for line in lines if line[1] != _size(0)]


def _size(count: float) -> str:
    """In the largest unit that gives at least 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g} B"

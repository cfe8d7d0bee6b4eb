"""`gqa vectors`: the cases as files, for implementations in any language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqa.errors import one_of, one_sentence


def vectors(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to.")],
    dtypes: Annotated[str, typer.Option(help="Dtypes to write, as float32,bfloat16.")] = "float32",
    layers: Annotated[bool, typer.Option("--layers", help="Write those of layers too, with weights.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write node tests of ONNX's Attention too, to DIR/onnx.")
    ] = False,
) -> None:
    """Write the cases as safetensors, with what is expected; judge answers with `gqa conform --answers DIR`.

    Exit code 2 where DIR cannot be written.
    """
    with one_sentence():
        from conformance.checks.vectors import write_vectors
        from conformance.targets.limits import DTYPES

        chosen = tuple(one_of("--dtypes", name.strip(), DTYPES) for name in dtypes.split(","))
        count = write_vectors(folder, dtypes=chosen, layers=layers)
        size = sum(path.stat().st_size for path in folder.iterdir())
        nodes = None
        if onnx:
            from conformance.checks.onnx_tests import OPSET, write_onnx

            nodes = write_onnx(folder / "onnx")
    typer.echo(f"{folder}: {count} cases, {size / 1e6:.1f} MB; cases.json lists them, schema.json says how")
    if nodes is not None:
        left_out = sum(nodes.left_out.values())
        typer.echo(f"{folder / 'onnx'}: {nodes.count} node tests of opset {OPSET}; {left_out} cases are left out:")
        for reason, count in nodes.left_out.most_common():
            typer.echo(f"  {count:>3}  {reason}")
    typer.echo("next: write a file of the same name with `output` for each, then gqa conform --answers DIR")

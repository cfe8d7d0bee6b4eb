"""`gqa inspect`: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqa.errors import one_sentence
from gqa.lines import plain, show
from gqa.options import Json
from gqa.outputs import STDOUT, check_files, list_written, write_json

if TYPE_CHECKING:
    from gqa_weights.checkpoint.checksums import Checked


def inspect(
    path: Annotated[Path, typer.Argument(help="A file or a folder.")],
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read all tensors and compare them with the manifest's checksums.")
    ] = False,
    json: Json = None,
) -> None:
    """Print a checkpoint's family, heads, RoPE, norms, windows, dtype, size and what its KV cache will take.

    With --checksums the exit code is 1 where a tensor is not what was written.
    """
    with one_sentence():
        check_files({"--json": json})
        from gqa_weights.hub import local

        path = local(path)
        found = _checked(path, json) if checksums else _described(path, json)
        if json is not None:
            write_json(json, found)
        list_written(json)
    raise typer.Exit(1 if checksums and found["differing"] else 0)


def _described(path: Path, json: Path | None) -> dict[str, Any]:
    from gqa_weights.describe import describe

    found = describe(path)
    if json != STDOUT:
        _print(path, found)
    return found


def _checked(path: Path, json: Path | None) -> dict[str, Any]:
    from gqa_weights.checkpoint import open_checkpoint
    from gqa_weights.checkpoint.checksums import check

    tensors = list(check(open_checkpoint(path)))
    if json != STDOUT:
        _print_checked(path, tensors)
    return {
        "path": str(path),
        "stated": sum(bool(tensor.stated) for tensor in tensors),
        "differing": [tensor.name for tensor in tensors if tensor.differs],
        "sha256": {tensor.name: tensor.found for tensor in tensors},
    }


def _print_checked(path: Path, tensors: list[Checked]) -> None:
    stated = [tensor for tensor in tensors if tensor.stated]
    if not stated:
        for tensor in tensors:
            show(f"{tensor.found}  {tensor.name}")
        show(f"{path}: no manifest states checksums; those above were computed")
        return
    for tensor in tensors:
        if tensor.differs:
            show(f"{tensor.name}: {'differs' if tensor.found else 'is missing'}")
        elif not tensor.stated:
            show(f"{tensor.name}: has no checksum in the manifest")
    show(f"{path}: {sum(not tensor.differs for tensor in stated)} of {len(stated)} tensors are as they were written")


def _print(path: Path, found: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), plain(f"{value:,}" if isinstance(value, int) else value))
    console = Console()
    title = plain(path)
    title.stylize("bold")
    console.print(title)
    console.print(table)

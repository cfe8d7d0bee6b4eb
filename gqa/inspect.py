"""`gqa inspect`: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqa.errors import one_sentence
from gqa.options import Json
from gqa.outputs import STDOUT, check_files, list_written, write_json


def inspect(path: Annotated[Path, typer.Argument(help="A file or a folder.")], json: Json = None) -> None:
    """Print a checkpoint's family, heads, RoPE, norms, windows, dtype, size and what its KV cache will take."""
    with one_sentence():
        check_files({"--json": json})
        from gqa_weights.describe import describe

        found = describe(path)
        if json != STDOUT:
            _print(path, found)
        if json is not None:
            write_json(json, found)
        list_written(json)


def _print(path: Path, found: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), Text(f"{value:,}" if isinstance(value, int) else str(value)))
    console = Console()
    console.print(Text(str(path), style="bold"))
    console.print(table)

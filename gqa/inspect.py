"""`gqa inspect`: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gqa.common import one_sentence, print_json
from gqa.options import Json
from gqa_weights.describe import describe


def inspect(path: Annotated[Path, typer.Argument(help="A file or a folder.")], json: Json = False) -> None:
    """Print a checkpoint's family, heads, RoPE, norms, windows, dtype, size and what its KV cache will take."""
    with one_sentence():
        found = describe(path)
    if json:
        print_json(found)
        return
    table = Table(title=str(path), show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)

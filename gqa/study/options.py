"""The options that several studies share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[str | None, typer.Option(metavar="PATTERN", help="Only rows whose text contains this; * and ? match.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try the study itself; the figures mean nothing.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the rows, the machine and the versions.")]
Folder = Annotated[Path, typer.Option(help="Where the CSV, the PNG and the finished runs are written.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many runs of each kind.")]
RESULTS = Path("results")

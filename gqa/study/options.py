"""The options that several studies share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[str | None, typer.Option(metavar="PATTERN", help="Only rows whose text contains this; * and ? match.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try the study itself; the figures mean nothing.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows to this file.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write rows, machine, versions; - for stdout.")
]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where CSV, PNG and finished runs are written.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many runs of each kind.")]
RESULTS = Path("results")
QUICK = "QUICK: means nothing"  # on the screen, in the CSV and in the figure of a quick study

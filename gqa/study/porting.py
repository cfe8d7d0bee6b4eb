"""`gqa study porting`: a large checkpoint, ported with transposes, against cp."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gqa.common import one_sentence
from gqa.study.output import about_machine
from gqa_studies import porting
from gqa_studies.rows import as_rows, write_csv, write_json


def porting_study(
    gigabytes: Annotated[float, typer.Option(help="The size of the checkpoint that is made.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often cp and the port are run in turn.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="On whose disk: three copies must fit.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the row to this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the row, the machine, the versions.")] = None,
) -> None:
    """Port a sharded checkpoint from Hugging Face's names to flax kernels: peak memory, and the speed against cp."""
    console = Console()
    about = about_machine()
    with (
        one_sentence(),
        tempfile.TemporaryDirectory(dir=folder, prefix="gqa-porting-") as place,
        Progress(console=console, transient=True) as bar,
    ):
        task = bar.add_task("rounds of cp and port", total=rounds)
        found = porting.measure(Path(place), gigabytes, rounds, lambda: bar.update(task, advance=1))
    table = Table(title="Porting", show_header=False)
    for name, value in as_rows([found])[0].items():
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(
        f"limits: {porting.LEAST} of the speed of cp, {porting.LARGEST // 2**20} MiB of anonymous memory",
        highlight=False,
    )
    if csv_file is not None:
        write_csv(csv_file, as_rows([found]))
    if json_file is not None:
        write_json(json_file, **about, rows=as_rows([found]))

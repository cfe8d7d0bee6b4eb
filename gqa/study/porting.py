"""`gqa study porting`: a large checkpoint, ported with transposes, against cp."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gqa.errors import one_sentence
from gqa.outputs import check_files, check_folder
from gqa.study.options import CsvFile, JsonFile


def porting_study(
    gigabytes: Annotated[float, typer.Option(help="The size of the checkpoint that is made.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often cp and the port are run in turn.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="On whose disk: three copies must fit.")] = None,
    csv_file: CsvFile = None,
    json_file: JsonFile = None,
) -> None:
    """Port a sharded checkpoint from Hugging Face's names to flax kernels: peak memory, and the speed against cp."""
    with one_sentence():
        check_files({"--csv": csv_file, "--json": json_file})
        if folder is not None:
            check_folder("--folder", folder)
        from rich.console import Console
        from rich.table import Table

        from gqa.outputs import STDOUT
        from gqa.progress import counted
        from gqa.study import output
        from gqa_studies import porting
        from gqa_studies.rows import as_rows

        about, console = output.about_machine(), Console(stderr=json_file == STDOUT)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix="gqa-porting-") as place,
            counted("rounds of cp and port", rounds) as advance,
        ):
            found = as_rows([porting.measure(Path(place), gigabytes, rounds, lambda: advance(1))])
        table = Table(title="Porting", show_header=False)
        for name, value in found[0].items():
            table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
        console.print(table)
        limits = f"limits: {porting.LEAST} of the speed of cp, {porting.LARGEST // 2**20} MiB of anonymous memory"
        console.print(limits, highlight=False)
        output.write_rows(found, about, csv_file, json_file)

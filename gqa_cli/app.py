"""The command and its subcommands."""

from __future__ import annotations

import typer

from gqa_cli.conform import conform
from gqa_cli.dialect import dialect
from gqa_cli.generate import generate
from gqa_cli.inspect import inspect
from gqa_cli.pool import expand, pool
from gqa_cli.port import port
from gqa_cli.study import study
from gqa_cli.study_porting import porting_study
from gqa_cli.trace import trace
from gqa_cli.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (conform, dialect, trace, inspect, port, pool, expand, verify, generate):
    app.command()(command)
study.command("porting")(porting_study)
app.add_typer(study, name="study")


@app.callback()
def gqa() -> None:
    """Grouped-query attention: one specification, three implementations, one proof."""

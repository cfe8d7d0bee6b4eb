"""The command and its subcommands."""

from __future__ import annotations

import typer

from gqa.conform import conform
from gqa.dialect import dialect
from gqa.generate import generate
from gqa.inspect import inspect
from gqa.pool import expand, pool
from gqa.port import port
from gqa.study import study
from gqa.trace import trace
from gqa.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (conform, dialect, trace, inspect, port, pool, expand, verify, generate):
    app.command()(command)
app.add_typer(study, name="study")


@app.callback()
def gqa() -> None:
    """Grouped-query attention: one specification, three implementations, one proof."""

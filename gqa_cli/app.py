"""The command and its subcommands."""

from __future__ import annotations

import typer

from gqa_cli.conform import conform
from gqa_cli.study import study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(conform)
app.add_typer(study, name="study")


@app.callback()
def gqa() -> None:
    """Grouped-query attention: one specification, three implementations, one proof."""

"""The command and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gqa.conform import conform
from gqa.dialect import dialect
from gqa.errors import say, usage_sentence
from gqa.generate import generate
from gqa.inspect import inspect
from gqa.interrupt import EXIT_CODE, sentence
from gqa.plan import plan
from gqa.pool import expand, pool
from gqa.port import port
from gqa.start import print_start
from gqa.study import study
from gqa.trace import trace
from gqa.vectors import vectors
from gqa.verify import verify
from gqa.version import __version__

# What typer raises for bad usage. It has click inside, and exports none of its errors but a subclass of this one.
UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """Refuses bad usage in one sentence, as the commands do, and ends on Ctrl-C with exit code 130."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **more: Any) -> Any:
        arguments = sys.argv[1:] if args is None else list(args)
        name = " ".join(["gqa", *arguments[: 1 if arguments[:1] and not arguments[0].startswith("-") else 0]])
        try:
            code = super().main(args=arguments, **{**more, "prog_name": "gqa", "standalone_mode": False})
        except UsageError as error:
            context = getattr(error, "ctx", None)
            say(usage_sentence(error.format_message(), context.command_path if context else "gqa"))
            code = 2
        except typer.Abort:  # what typer makes of Ctrl-C before 0.16
            code = EXIT_CODE
        if code == EXIT_CODE:
            say(sentence(name))
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (conform, dialect, trace, inspect, port, pool, expand, verify, generate, plan, vectors):
    app.command()(command)
app.add_typer(study, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gqa {__version__}")
        raise typer.Exit


@app.callback()
def gqa(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Grouped-query attention: one specification, three implementations, one proof."""
    if context.invoked_subcommand is None:
        print_start()

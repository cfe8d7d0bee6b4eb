"""Lines of a screen."""

from __future__ import annotations

import textwrap

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text


def plain(value: object) -> Text:
    """Text that may come from a file: its control characters are shown as escapes, and nothing in it is markup."""
    return Text(_printable(value), overflow="fold")


def show(line: object) -> None:
    """One line of a result on stdout."""
    typer.echo(_printable(line))


def _printable(value: object) -> str:
    from gqa_weights.checkpoint.printable import printable  # which loads numpy

    return printable(str(value))


class Indented:
    """A paragraph, wrapped between words, each line indented; no spaces at the ends of lines."""

    def __init__(self, text: str, columns: int = 2, style: str = "") -> None:
        self.text, self.columns, self.style = text, columns, style

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        margin = " " * self.columns
        yield Text(
            textwrap.fill(
                _printable(self.text),
                max(options.max_width, 40),
                initial_indent=margin,
                subsequent_indent=margin,
                break_long_words=False,
                break_on_hyphens=False,
            ),
            style=self.style,
        )

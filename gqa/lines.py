"""Lines of a screen."""

from __future__ import annotations

import textwrap

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text


class Indented:
    """A paragraph, wrapped between words, each line indented; no spaces at the ends of lines."""

    def __init__(self, text: str, columns: int = 2, style: str = "") -> None:
        self.text, self.columns, self.style = text, columns, style

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        margin = " " * self.columns
        yield Text(
            textwrap.fill(
                self.text,
                max(options.max_width, 40),
                initial_indent=margin,
                subsequent_indent=margin,
                break_long_words=False,
                break_on_hyphens=False,
            ),
            style=self.style,
        )

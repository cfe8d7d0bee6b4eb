"""Progress bars: on stderr, none where that is no terminal, and no library writes into them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

Advance = Callable[[int], None]
NAME = "{task.description}"


@contextmanager
def counted(what: str, total: int | None) -> Iterator[Advance]:
    """A bar of steps; the function that it gives is called with how many more are done."""
    with bars() as progress:
        bar = progress.add_task(what, total=total)
        yield lambda size: progress.update(bar, advance=size)


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars of steps, one for each task that is added."""
    with _shown(TextColumn(NAME), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        yield progress


@contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Advance]:
    columns = TextColumn(NAME), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()
    with _shown(*columns) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda size: progress.update(bar, advance=size)


@contextmanager
def _shown(*columns: ProgressColumn) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield Progress(disable=True)
        return
    with _own_stderr() as stderr, Progress(*columns, console=Console(file=stderr), transient=True) as progress:
        yield progress


@contextmanager
def _own_stderr() -> Iterator[IO[Any]]:
    """A stream to the terminal. What this process and its children write to stderr meanwhile goes into a file: it is
    shown where an error ends the command, and counted otherwise."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        except (typer.Exit, KeyboardInterrupt):
            _restore(terminal)
            raise
        except BaseException:
            _restore(terminal)
            file.seek(0)
            shutil.copyfileobj(file, sys.stderr)
            raise
        _restore(terminal)
        file.seek(0)
        lines = sum(1 for line in file if line.strip())
    if lines:
        typer.echo(f"{lines} lines that libraries wrote to stderr are not shown; 2>FILE keeps them", err=True)


def _restore(terminal: IO[Any]) -> None:
    sys.stderr.flush()
    os.dup2(terminal.fileno(), 2)

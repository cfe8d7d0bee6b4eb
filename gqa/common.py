"""What the commands on checkpoints share: one sentence for bad input, a progress bar, JSON instead of tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input, and a file system that refuses, end the command with one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"install the package {error.name} to do this", err=True)
        raise typer.Exit(2) from error
    except (ValueError, TypeError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(2) from error


def bytes_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    return progress(*columns)


def progress(*columns: ProgressColumn) -> Progress:
    """On stderr, so that stdout holds nothing but the result; none where nobody watches."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(found, indent=1, allow_nan=False))

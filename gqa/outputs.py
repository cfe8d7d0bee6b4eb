"""The files that a command writes: checked before the work, listed after it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

STDOUT = Path("-")


def check_files(paths: Mapping[str, Path | None]) -> None:
    """option -> path, None where it is not given. Raises ValueError where a file could not be written."""
    for option, path in paths.items():
        if path is None or path == STDOUT:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ValueError(f"{option}: there is no folder {path.parent}")
        if path.is_dir():
            raise ValueError(f"{option}: expected a file, {path} is a folder")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise ValueError(f"{option}: {path} cannot be written: permission denied")


def check_folder(option: str, folder: Path) -> None:
    """Raises ValueError where the folder can neither be written nor made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: expected a folder, {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option}: {folder} cannot be written: permission denied")


def write_json(path: Path, found: Any) -> None:
    """To a file, or to stdout where the path is "-"."""
    text = json.dumps(found, indent=1, allow_nan=False)
    if path == STDOUT:
        typer.echo(text)
    else:
        path.write_text(text + "\n")


def list_written(*paths: Path | None) -> None:
    """The last line of a command: on stderr, so that it is in no result."""
    written = [str(path) for path in paths if path is not None and path != STDOUT]
    if written:
        typer.echo(f"written: {', '.join(written)}", err=True)


def check_new(name: str, path: Path, force: bool) -> None:
    """Raises ValueError where something is at the path and may not be overwritten, or nothing can be written there."""
    if path.exists() and not force:
        raise ValueError(f"{name}: {path} exists; --force overwrites it")
    check_folder(name, path.absolute().parent)

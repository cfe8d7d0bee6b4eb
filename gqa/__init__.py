"""The command `gqa`, also as `python -m gqa`. Each subcommand calls the package that does the work and prints what it
found.

`gqa.__version__` is the version of the project; `gqa.app` is the command as a typer application.
"""

from __future__ import annotations

from typing import Any

from gqa.version import __version__

__all__ = ["__version__", "app"]


def __getattr__(name: str) -> Any:
    """`app` is imported when it is used: the version alone loads nothing else."""
    if name == "app":
        from gqa.cli import app

        return app
    raise AttributeError(f"module 'gqa' has no attribute {name!r}")

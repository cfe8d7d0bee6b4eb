"""The front door: `gqa`. Each subcommand calls the room that does the work and prints what it found."""

from gqa.app import app

__all__ = ["app"]

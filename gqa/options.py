"""The options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Arrays = Annotated[
    Literal["numpy", "torch", "jax"] | None,
    typer.Option(help="The arrays that the target takes, where it is not a torch or flax module."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is at DEST.")]

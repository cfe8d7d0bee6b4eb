"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Arrays = Annotated[
    Literal["numpy", "torch", "jax"] | None,
    typer.Option(help="The arrays that the target takes, where it is not a torch or flax module."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for stdout, without a table.")
]
Backend = Annotated[
    str | None, typer.Option(help="Which backend computes: torch, jax or numpy; the first of them that is installed.")
]
Backends = Annotated[
    list[str] | None,
    typer.Option("--backend", help="Which backend computes: numpy, torch or jax. Twice: the first for A, then for B."),
]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds that a target may take for one case; 30 unless given.")]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite the checkpoint at DEST; other files in its folder stay.")
]
ShardSize = Annotated[
    str | None, typer.Option("--shard-size", metavar="SIZE", help="The most of one file of a folder, such as 5GB.")
]
NoChecksums = Annotated[
    bool, typer.Option("--no-checksums", help="Leave the checksum of each tensor out of the manifest.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, or refused; write nothing.")]
LimitsFile = Annotated[
    Path | None,
    typer.Option("--limits", metavar="FILE", help="What the target takes, as TOML: dtypes, masks, ..."),
]
Layout = Annotated[str | None, typer.Option(help="The order of axes of the target's arrays: BNTH (the default), BTNH.")]
WeightsLayout = Annotated[
    str | None, typer.Option("--weights", help="The layout in which a class holds its weights, of `gqa port`.")
]
Device = Annotated[str | None, typer.Option(help="Where arrays are made: cuda, mps, cpu:1.")]

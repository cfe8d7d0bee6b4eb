"""What `gqa` alone prints: what is installed, and the first commands to try."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import typer

from gqa.version import __version__

COMMANDS = {
    "gqa conform": "compare the backends, 1 to 2 min",
    "gqa conform --target my_module:MyAttention": "judge your own attention",
    "gqa dialect torch.sdpa": "its conventions, by name",
    "gqa trace torch my_module:MyAttention": "the first stage that differs",
    "gqa inspect CHECKPOINT": "heads, RoPE and cache of a file",
    "gqa port CHECKPOINT DEST --to LAYOUT": "the weights in another layout",
    "gqa verify CHECKPOINT DEST": "prove the port, layer by layer",
    "gqa study memory --num-heads 32": "cache bytes for each K",
    "gqa plan CHECKPOINT --tensor 8": "bytes on a mesh of devices",
}


def print_start() -> None:
    installed = [f"{package} {found}" for package in ("numpy", "torch", "jax") if (found := _version(package))]
    typer.echo(f"gqa {__version__}: grouped-query attention in NumPy, PyTorch and JAX, proven equal")
    typer.echo(f"installed: {', '.join(installed)}\n")
    widest = max(map(len, COMMANDS)) + 2
    for command, purpose in COMMANDS.items():
        typer.echo(f"  {command:<{widest}}{purpose}")
    typer.echo("\nall commands: gqa --help    one command: gqa COMMAND --help")


def _version(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None

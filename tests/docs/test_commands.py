"""Every `gqa ...` that README.md and docs/ show is one that the command line accepts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gqa.cli import app
from tests.docs.documents import PAGES, README, commands

pytestmark = pytest.mark.no_shape_checks
SHOWN = [(page, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def parse(command: str) -> None:
    """Parse the arguments of a command and of its subcommands, and run nothing; bad usage raises."""
    node: Any = typer.main.get_command(app)
    arguments, parent = shlex.split(command)[1:], None
    while True:
        context = node.make_context("gqa", arguments, parent=parent)
        rest = [*context._protected_args, *context.args]  # the name of the subcommand, and what follows it
        if not hasattr(node, "commands") or not rest:
            return
        _, node, arguments = node.resolve_command(context, rest)
        parent = context


def test_the_readme_shows_commands() -> None:
    assert len([command for page, command in SHOWN if page == README]) >= 8


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=[f"{page.name}: {command}" for page, command in SHOWN])
def test_a_command_that_is_shown_parses(page: Path, command: str) -> None:
    parse(command)


@pytest.mark.parametrize(
    "command", ["gqa conform --no-such-option", "gqa nothing", "gqa port one", "gqa study nothing"]
)
def test_the_parser_refuses_what_is_wrong(command: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(command)

"""The port of docs/interpreting.md: its files are written, its commands run, its diffs applied, from top to bottom."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT

pytestmark = pytest.mark.no_shape_checks
PAGE = ROOT / "docs" / "interpreting.md"
PORT = PAGE.read_text().partition("## A port with two bugs")[2]
BLOCKS = re.findall(r"^```(python|diff|console)\n(.*?)^```$", PORT, flags=re.MULTILINE | re.DOTALL)
PROGRAMS = {"python": [sys.executable], "gqa": [sys.executable, "-m", "gqa"]}


def without_roundings(text: str) -> str:
    """Rounding errors as 0, and other numbers to three places: they depend on the machine."""
    return re.sub(r"(\d\.\d{3})\d+", r"\1", re.sub(r"\d(\.\d+)?e-0[5-9]", "0", text))


def patch(folder: Path, block: str) -> None:
    """Replace the lines that begin with - by those that begin with +."""
    name, *lines = block.splitlines()
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line.startswith(sign)) for sign in ("-", "+"))
    file = folder / name.removeprefix("--- ")
    source = file.read_text()
    assert source.count(old) == 1, old
    file.write_text(source.replace(old, new))


def run(folder: Path, command: str) -> str:
    program, *arguments = shlex.split(command)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that changes within a second keeps its old bytecode
    }
    done = subprocess.run(
        [*PROGRAMS[program], *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_port_goes_from_a_difference_to_none(tmp_path: Path) -> None:
    assert [kind for kind, _ in BLOCKS].count("diff") == 2
    check = doctest.OutputChecker().check_output
    for kind, block in BLOCKS:
        if kind == "python":
            name = block.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
        elif kind == "diff":
            patch(tmp_path, block)
        else:
            for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, expected = shown.partition("\n")
                found = run(tmp_path, command)
                same = check(without_roundings(expected), without_roundings(found), doctest.NORMALIZE_WHITESPACE)
                assert same, f"{command}\n{found}"

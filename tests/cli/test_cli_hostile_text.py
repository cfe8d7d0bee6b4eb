"""What the command prints of hostile files: no control characters, no markup that is obeyed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.checkpoints import K_PROJ, edited, ok, run

pytestmark = pytest.mark.no_shape_checks

HOSTILE = "\x1b[31m[red]\u202ex[/red][/]"


def shown(result: Any) -> str:
    """All that the terminal gets, which must be printable."""
    text = result.stdout + result.stderr
    hidden = {c for c in text if not c.isprintable()} - {"\n"}
    assert not hidden, text
    return text


def renamed(folder: Path) -> None:
    """A tensor with a hostile name."""
    stored = load_file(folder / "model.safetensors")
    stored[HOSTILE] = stored.pop(K_PROJ)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def misplaced(folder: Path) -> None:
    """A shard with a hostile name."""
    index = {"weight_map": {K_PROJ: HOSTILE}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def reset(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


SPOILED = {
    "a key": lambda folder: reset(folder, **{HOSTILE: 1}),
    "a value": lambda folder: reset(folder, hidden_act=HOSTILE),
    "a family": lambda folder: reset(folder, model_type=HOSTILE),
    "a tensor": renamed,
    "a shard": misplaced,
}


@pytest.mark.parametrize("case", SPOILED)
def test_errors_are_printable(case: str, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    SPOILED[case](folder)
    for command in (
        ("inspect", folder),
        ("port", folder, tmp_path / "dest", "--to", "meta"),
        ("verify", folder, llama),
        ("generate", folder, "x"),
        ("trace", folder, llama),
    ):
        result = run(*command)
        assert result.exit_code == 2, command
        assert len(shown(result).splitlines()) == 1, command


def test_results_with_hostile_names_are_printable(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x[red]\x1b[2J\u202e"
    shutil.copytree(llama, folder)
    other = edited(llama, tmp_path / "other[bold]", **{K_PROJ: np.zeros((24, 72), np.float32)})
    assert r"x[red]\x1b[2J\u202e" in shown(ok("inspect", folder)).replace("\n", "")
    assert r"x[red]\x1b[2J\u202e" in shown(ok("verify", folder, llama)).replace("\n", "")
    assert "other[bold]" in shown(run("verify", folder, other)).replace("\n", "")
    shown(ok("port", folder, tmp_path / "dest[red]", "--to", "canonical"))
    shown(ok("inspect", tmp_path / "dest[red]", "--checksums"))
    shown(run("port", folder, tmp_path / "dest[red]", "--to", "meta"))
    shown(run("inspect", tmp_path / "none[bold]\x1b"))

"""docs/kernel.md names the modules that the backends share, and functions that all three have."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.documents import ROOT

TABLE = (ROOT / "docs" / "kernel.md").read_text().partition("## Modules")[2].partition("## Packages")[0]
ROWS = [line.split("|")[1:4] for line in TABLE.splitlines() if line.startswith("| `")]


def names(backend: str, modules: list[str]) -> set[str]:
    trees = [ast.parse((ROOT / f"gqa_{backend}" / f"{module}.py").read_text()) for module in modules]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_each_backend_has_the_functions_of_the_table(backend: str) -> None:
    assert len(ROWS) >= 9
    for modules, _, functions in ROWS:
        assert set(re.findall(r"`(\w+)`", functions)) <= names(backend, re.findall(r"`(\w+)`", modules)), modules

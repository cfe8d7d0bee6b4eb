"""SPEC.md: its clauses are numbered, cited clauses exist, and its tables name every weight and every path."""

from __future__ import annotations

import ast
import re

import pytest

from gqa_spec import AttentionConfig
from gqa_weights import symbolic_shapes
from tests.docs.documents import ROOT
from tests.docs.documents import SPEC as PAGE

SPEC = PAGE.read_text()


def test_clauses_are_numbered_from_1_to_20() -> None:
    assert re.findall(r"^## (\d+)\. ", SPEC, flags=re.MULTILINE) == [str(n) for n in range(1, 21)]


def test_clauses_that_are_cited_exist() -> None:
    cited: set[str] = set()
    for path in (path for folder in ("gqa*", "conformance", "tests") for path in ROOT.glob(f"{folder}/**/*.py")):
        cited |= {n for found in re.findall(r"SPEC (\d+(?:, \d+)*)", path.read_text()) for n in found.split(", ")}
    assert cited <= {str(n) for n in range(1, 21)}


@pytest.mark.parametrize("kind", ["rms", "rms_full"])
def test_every_weight_is_named_with_its_shape(kind: str) -> None:
    config = AttentionConfig(embed_dim=8, num_heads=2, qkv_bias=True, out_bias=True, qk_norm=kind, sinks=True)
    table = SPEC.partition("## 16.")[2].partition("## 17.")[0]
    for name, shape in symbolic_shapes(config).items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"({shape})" in row


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_every_path_is_named(backend: str) -> None:
    table = SPEC.partition("## Which path is taken")[2]
    module = ast.parse((ROOT / f"gqa_{backend}" / "attention.py").read_text())
    [choose] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "choose_path"]
    calls = [node for node in ast.walk(choose) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path"]
    paths = {str(ast.literal_eval(call.args[0])) for call in calls}
    assert paths
    for path in paths:
        assert f"| gqa_{backend} | `{path}` |" in table or f"| each | `{path}` |" in table

"""The source: lengths of modules and functions, entries of conformance, contracts, typed packages."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gqa_spec", "gqa_weights", "gqa_numpy", "gqa_torch", "gqa_jax", "conformance", "gqa_studies", "gqa")
MODULES = [path for folder in (*PACKAGES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def lines(node: ast.AST) -> int:
    return (getattr(node, "end_lineno", 0) or 0) - getattr(node, "lineno", 0) + 1


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and without what is defined inside it, which is counted by itself."""
    inside = [node for node in function.body if isinstance(node, Definition)]
    docstring = function.body[:1] if ast.get_docstring(function) else []
    return lines(function) - sum(lines(node) for node in [*inside, *docstring])


def test_no_module_has_more_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in MODULES}
    assert {name: count for name, count in lengths.items() if count > 400} == {}


def test_no_function_has_more_than_60_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {node.name}": own_lines(node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and own_lines(node) > 60
    }
    assert long == {}


def test_conformance_has_at_most_twelve_entries() -> None:
    entries = [path.name for path in (ROOT / "conformance").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 12, entries


def test_the_import_contracts_have_no_exemptions() -> None:
    contracts = SETTINGS["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 5
    assert [contract["name"] for contract in contracts if "ignore_imports" in contract] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed_and_in_the_wheel(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["*"]

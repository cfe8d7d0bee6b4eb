"""The source itself: entries of conformance, contracts without exemptions, typed packages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gqa_spec", "gqa_weights", "gqa_numpy", "gqa_torch", "gqa_jax", "conformance", "gqa_studies", "gqa")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


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

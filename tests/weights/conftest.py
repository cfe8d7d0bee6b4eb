"""The folder that small models are saved to, once for all tests, and each whole model in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.weights.small_models import WHOLE, saved


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(params=WHOLE)
def whole_model(request: pytest.FixtureRequest, folder: Path) -> tuple[Any, Path]:
    return saved(request.param, folder)

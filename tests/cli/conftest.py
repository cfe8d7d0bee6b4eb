"""The checkpoints that the tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.checkpoints import GEMMA3, LLAMA, saved


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    return saved(tmp_path_factory.mktemp("llama") / "model", model)


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA3))
    return saved(tmp_path_factory.mktemp("gemma3") / "model", model)

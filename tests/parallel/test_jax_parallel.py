"""gqa_jax over a mesh of four forced devices: equal to one device, in gradients, text and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig
from gqa_spec.placement import cut_axes
from gqa_weights import port

ROOT = Path(__file__).parents[2]
LAYERS = 3  # of the model whose collectives are counted
NOTHING_ELSE = {"all-gather": 0, "all-to-all": 0, "collective-permute": 0, "reduce-scatter": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """Where one process has written everything that it found, and a checkpoint."""
    folder = tmp_path_factory.mktemp("devices")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "parallel" / "jax_devices.py", folder, checkpoints]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


def named(found: dict[str, Any], start: str) -> dict[str, Any]:
    """At least two results whose names start so."""
    chosen = {name: result for name, result in found.items() if name.startswith(start)}
    assert len(chosen) > 1
    return chosen


def test_gradients_are_those_of_one_device(found):
    differences = named(found, "gradients, ")
    assert len(differences) == 11
    assert max(differences.values()) <= 1e-12
    assert found["gradients with fsdp"] <= 1e-12


@pytest.mark.parametrize(("K", "heads"), [(8, 2), (2, 1)])
def test_blocks_are_of_each_devices_heads_alone(found, K, heads):
    """Three rows of the batch: the loop over rows and heads runs 3 * heads times on a device."""
    assert found[f"loop, K = {K}"] == [3 * heads]
    assert found[f"blocked, K = {K}"] <= 1e-12
    assert found[f"blocked, gradients, K = {K}"] <= 1e-12
    assert found[f"blocked, collectives, K = {K}"] == NOTHING_ELSE | {"all-reduce": 1}


@pytest.mark.parametrize("K", [4, 2])
def test_a_program_reduces_twice_for_each_layer_and_once_for_the_embedding(found, K):
    for program in ("forward", "step"):
        assert found[f"{program}, K = {K}"] == NOTHING_ELSE | {"all-reduce": 1 + 2 * LAYERS}
    assert found[f"heads in the cache, K = {K}"] == [1, 1, 1, 1]


def test_text_and_weights_are_those_of_one_device(found):
    assert all(named(found, "text, ").values())
    assert all(named(found, "weights, ").values())
    assert all(named(found, "still spread, ").values())


def test_a_layer_with_masks_offsets_and_a_cache(found):
    assert found["layer"] <= 1e-12


def test_context_parallel(found):
    assert max(named(found, "context, ").values()) <= 1e-12
    assert max(named(found, "gradients in context, ").values()) <= 1e-11


@pytest.mark.parametrize("format", ["safetensors", "gguf", "orbax"])
def test_a_checkpoint_is_read_into_the_parts_of_each_device(found, format):
    """Memory that holds no pages of the file: all four parts in JAX's process, one in that of a rank of PyTorch."""
    assert found[f"{format}: weights"]
    assert found[f"{format}: share of the weights"] <= 1.2 / 4
    assert found[f"{format}: weights of a rank"]
    if found["private memory is measured"]:
        assert 0.8 <= found[f"{format}: growth"] <= 1.2
        assert 0.8 / 4 <= found[f"{format}: growth of a rank"] <= 1.2 / 4


def test_text_of_a_checkpoint(found):
    assert found["text of a checkpoint"]
    assert found["share with fsdp"] == 1 / 4


def test_a_checkpoint_written_on_one_mesh_loads_on_another_bit_by_bit(found):
    assert len(named(found, "orbax, 2 x 2 to ")) == 4
    assert all(named(found, "orbax, 2 x 2 to ").values())
    assert found["saved twice"] == "/saved: expected a path that does not exist yet"
    assert found["state, 2 x 2 to 1 x 4"]
    assert found["state, spread"] == [24, 48 // 4]


def test_gqa_port_reads_what_a_mesh_wrote(folder, tmp_path):
    plan = port.plan(folder / "saved", "canonical")
    port.write(plan, tmp_path / "ported")
    written, ported = (port.open_model(path) for path in (folder / "saved", tmp_path / "ported"))
    assert written.config == ported.config
    assert all((written.weights[name] == ported.weights[name]).all() for name in written.weights)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("N", "tensor: expected a size that divides N = 6, and divides K = 3 or is a multiple of it: one of 1, 3, 6"),
        ("K", "tensor: expected a size that divides N = 12, and divides K = 3 or is a multiple of it: one of 1, 3, 6"),
        ("rms_full", "qk_norm: expected a norm of each head, got 'rms_full'"),
        ("axis", "tensor: expected an axis of the mesh, data, tensor, got 'model'"),
        ("none", "tensor, data, context: expected at least one axis of the mesh"),
        ("explicit", "mesh: expected axes of AxisType.Auto, got Explicit axes data, tensor: make the mesh with axis_"),
    ],
)
def test_what_is_refused_changes_nothing(found, name, sentence):
    assert found[f"refused, {name}"].startswith(sentence)
    assert found[f"unchanged, {name}"]


def test_a_length_that_the_devices_do_not_divide_is_refused(found):
    assert found["refused, T"] == "query: expected context = 4, the devices of the mesh's axis, to divide T = 5"


def test_weights_are_where_gqa_torch_has_them(found):
    """Both cut as `placement.cut_axes` says."""
    layer = AttentionConfig(embed_dim=24, num_heads=8, num_kv_heads=2, head_dim=6, qk_norm="rms_plus_one")
    config = ModelConfig(
        attention=(layer,),
        feed_forward_size=16,
        vocab_size=20,
        norm="layer",
        norm_bias=True,
        gated=False,
        feed_forward_bias=True,
    )
    cut = {name: axes.index("tensor") if "tensor" in axes else None for name, axes in found["placements"].items()}
    assert cut == cut_axes(config, 2)


def test_the_example_of_the_guide_runs(found):
    [row] = found["example"]
    assert len(row) == 5

"""`gqa plan`: against published figures, real arrays, and the collectives of a compiled program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gqa_numpy
from gqa import app
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.mesh_plan import Mesh, mesh_plan
from gqa_spec.placement import cut_axes, local_config

pytestmark = pytest.mark.no_shape_checks
LLAMA_2_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
# Devices: GiB of weights a device, KiB of cache a token and device, MiB sent a token in a forward pass.
REFERENCE = {1: (128.5, 320, 0), 4: (32.1, 80, 3.75), 8: (16.06, 40, 4.38), 16: (10.38, 40, 4.69)}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_70B))
    return tmp_path / "config.json"


def plan(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("tensor", REFERENCE)
def test_the_figures_of_llama_2_70b(llama, tensor):
    found, (weights, cache, wire) = plan(llama, "--tensor", tensor), REFERENCE[tensor]
    assert found["parameters"] == 68_976_648_192
    assert found["weights"] / 2**30 == pytest.approx(weights, rel=2e-3)
    assert found["cache_per_token"] == cache * 2**10
    assert found["wire_per_token"] / 2**20 == pytest.approx(wire, abs=6e-3)
    assert found["kv_head_copies"] == max(tensor // 8, 1)
    assert found["largest_tensor"] == 8
    if tensor == 16:
        assert found["weights_of_own_heads"] / 2**30 == pytest.approx(8.19, rel=2e-3)


def test_the_screen_fits_80_columns(llama):
    result = CliRunner().invoke(
        app, ["plan", str(llama), "--tensor", "16", "--data", "8", "--context", "8", "--length", "131072"]
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "each KV head is on 2 devices" in result.stdout
    assert "1,024 devices" in result.stdout or "1024 devices" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tensor", "3"), "tensor: expected a size that divides N = 64"),
        (("--context", "3"), "context: expected context to divide length = 4096, got 3"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(llama, arguments, sentence):
    result = CliRunner().invoke(app, ["plan", str(llama), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1


LAYER = AttentionConfig(
    embed_dim=24, num_heads=12, num_kv_heads=2, head_dim=10, v_head_dim=6, qkv_bias=True, sinks=True, causal=True
)
MODEL = ModelConfig(attention=(LAYER, LAYER), feed_forward_size=36, vocab_size=48, max_length=20)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_bytes_are_those_of_real_arrays(tensor):
    """Weights cut along the axes that the mesh cuts, and the cache of a part's own layers."""
    found = mesh_plan(MODEL, Mesh(tensor=tensor), length=20, batch_size=3, element=8)
    weights, axes = gqa_numpy.Transformer(MODEL).export_weights(), cut_axes(MODEL, tensor)
    parts = [x if axes[name] is None else np.split(x, tensor, axes[name])[0] for name, x in weights.items()]
    assert found.weights == 8 * sum(part.size for part in parts)
    local = ModelConfig(attention=(local_config(LAYER, tensor),) * 2, feed_forward_size=36, vocab_size=48)
    cache = gqa_numpy.Transformer(local).init_cache(3, 20)
    assert found.cache == sum(each.keys.nbytes + each.values.nbytes for each in cache)
    kv = [
        x.size
        for name, x in gqa_numpy.Transformer(local).export_weights().items()
        if "k_proj" in name or "v_proj" in name
    ]
    whole = [x.size for name, x in weights.items() if "k_proj" in name or "v_proj" in name]
    unread = sum(whole) - sum(kv) if tensor > 2 else 0
    assert found.weights - found.weights_of_own_heads == 8 * unread


def test_data_and_context_axes_by_hand():
    """By hand: 4 shares of the weights; half of a row's keys and values come from the other device, and go back."""
    whole = mesh_plan(MODEL, Mesh(), length=20, element=2)
    found = mesh_plan(MODEL, Mesh(data=4, context=2), length=20, batch_size=3, element=2)
    assert (found.devices, found.stored_weights) == (8, 2 * -(-MODEL.param_count // 4))
    assert found.optimizer == found.stored_weights // 2 * 12
    assert found.wire_data == 3 * 0.75 * whole.weights
    assert found.wire_context == 2 * 0.5 * (2 * 3 * 20 * 2 * 16 * 2) + 2 * 0.5 * found.gradients
    assert (whole.wire_per_token, whole.wire_tensor, whole.wire_data, whole.wire_context) == (0, 0, 0, 0)


def test_a_compiled_program_holds_and_reduces_what_the_plan_says():
    pytest.importorskip("flax")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled_on_a_mesh.py"))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    found = json.loads(done.stdout)
    plan = found["plan"]
    assert found["local_bytes"] == plan["weights"]
    assert len(found["reduced"]) == plan["all_reduces"] + plan["embedding_reduces"] == 7
    assert found["all_gathers"] == 0
    tokens, ring = 2 * 8, 2 * 3 / 4
    sent = [4 * prod(shape) * ring / tokens for shape in found["reduced"]]
    assert sum(sent) == plan["wire_per_token"] * 7 / 6  # one more for the embedding

"""`gqa pool` and `gqa expand`, end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli.checkpoints import K_PROJ, Q_PROJ, ok, run, tensors
from tests.helpers import assert_same_bits

pytestmark = pytest.mark.no_shape_checks


def test_expand_then_pool_is_the_identity(llama, tmp_path):
    ok("expand", llama, tmp_path / "mha")
    assert tensors(tmp_path / "mha")[K_PROJ].shape == (72, 72)
    assert json.loads((tmp_path / "mha" / "config.json").read_text())["num_key_value_heads"] == 6
    found = json.loads(ok("inspect", tmp_path / "mha", "--json", "-").stdout)
    assert (found["query_heads"], found["kv_heads"], found["query_heads_per_kv_head"]) == (6, 6, 1)
    ok("pool", tmp_path / "mha", tmp_path / "back", "--num-kv-heads", 2)
    assert_same_bits(tensors(llama), tensors(tmp_path / "back"), in_order=False)
    stated = json.loads((tmp_path / "back" / "gqa_manifest.json").read_text())
    assert stated["source"]["changed"] == "KV heads pooled by mean"


def test_pool_takes_the_mean_of_neighbours_the_first_or_fresh_heads(llama, tmp_path):
    before = tensors(llama)[K_PROJ].astype(np.float64)
    for method in ("mean", "first"):
        ok("pool", llama, tmp_path / method, "--num-kv-heads", 1, "--method", method)
    assert np.allclose(tensors(tmp_path / "mean")[K_PROJ], (before[:12] + before[12:]) / 2, rtol=1e-6)
    assert np.array_equal(tensors(tmp_path / "first")[K_PROJ], before[:12].astype(np.float32))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ok("pool", llama, tmp_path / name, "--num-kv-heads", 1, "--method", "random", "--seed", seed)
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert np.array_equal(a[K_PROJ], b[K_PROJ])
    assert not np.array_equal(a[K_PROJ], c[K_PROJ])
    other = a[K_PROJ.replace("layers.1", "layers.0")]
    assert abs(np.corrcoef(a[K_PROJ].ravel(), other.ravel())[0, 1]) < 0.5  # each layer has draws of its own
    assert np.array_equal(a[Q_PROJ], tensors(llama)[Q_PROJ])


def test_pooling_is_a_difference_that_verify_names(llama, tmp_path):
    ok("pool", llama, tmp_path / "pooled", "--num-kv-heads", 1)
    result = run("verify", llama, tmp_path / "pooled", "--json", "-")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["equal"]
    assert (found["first_difference"]["place"], found["first_difference"]["stage"]) == ("layer 0 attention", "k_proj")
    assert "num_kv_heads 2 in A, 1 in B" in found["first_difference"]["reason"]

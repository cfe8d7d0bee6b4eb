"""`gqa pool` and `gqa expand`, end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli.checkpoints import K_PROJ, Q_PROJ, edited, ok, run, tensors
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
    assert found["first_difference"]["reason"].startswith("pooled: lossy, each KV head of B is the mean of 2 of A's")
    assert "DIFFERS  pooled: lossy; " in run("verify", llama, tmp_path / "pooled").stdout
    ok("pool", llama, tmp_path / "first", "--num-kv-heads", 1, "--method", "first")
    reason = json.loads(run("verify", tmp_path / "first", llama, "--json", "-").stdout)["first_difference"]["reason"]
    assert reason.startswith("pooled: lossy, each KV head of A is the first of 2 of B's")
    ok("pool", llama, tmp_path / "random", "--num-kv-heads", 1, "--method", "random")
    assert (
        "pooled"
        not in json.loads(run("verify", llama, tmp_path / "random", "--json", "-").stdout)["first_difference"]["reason"]
    )


def test_verify_proves_that_expanded_heads_compute_the_same(llama, tmp_path):
    ok("expand", llama, tmp_path / "mha")
    for a, b, sentence in (
        (llama, tmp_path / "mha", "B has 6, each of A's 2 repeated 3 times, which loses nothing"),
        (tmp_path / "mha", llama, "A has 6, each of B's 2 repeated 3 times, which loses nothing"),
    ):
        for options in ((), ("--exact",)):
            found = json.loads(ok("verify", a, b, *options, "--json", "-").stdout)
            assert [verdict["reason"] for verdict in found["verdicts"] if verdict["place"] == "KV heads"] == [sentence]


@pytest.mark.parametrize("kind", ["tiled", "one number", "query"])
def test_heads_that_are_not_repeated_in_place_differ(llama, tmp_path, kind):
    """Tiled heads are read by other query heads; and one number in one of the copies is enough."""
    ok("expand", llama, tmp_path / "mha")
    name = Q_PROJ if kind == "query" else K_PROJ
    x = tensors(tmp_path / "mha")[name].copy()
    if kind == "tiled":
        x = x[[row for head in (0, 3, 1, 4, 2, 5) for row in range(12 * head, 12 * head + 12)]]
    else:
        x[17, 3] *= np.float32(1 + 2e-7)
    wrong = edited(tmp_path / "mha", tmp_path / "wrong", **{name: np.ascontiguousarray(x)})
    for options in ((), ("--exact",)):
        result = run("verify", llama, wrong, *options, "--json", "-")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["first_difference"]["place"] == "layer 1 attention"


def test_other_models_are_not_the_same_model(llama, gemma3, tmp_path):
    other = {name: np.random.default_rng(1).standard_normal(x.shape, np.float32) for name, x in tensors(llama).items()}
    of_the_same_sizes = edited(llama, tmp_path / "other", **other)
    tuned = {name: x + np.float32(0.1) * other[name] for name, x in tensors(llama).items()}
    for path, expected in (
        (of_the_same_sizes, True),
        (gemma3, True),
        (edited(llama, tmp_path / "tuned", **tuned), False),
    ):
        result = run("verify", llama, path)
        assert result.exit_code == 1
        assert ("DIFFERS  not the same model; first difference: " in result.stdout) == expected

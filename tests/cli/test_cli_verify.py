"""`gqa verify` and `gqa inspect`, end to end."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.cli.checkpoints import K_PROJ, Q_NORM, Q_PROJ, edited, ok, run, tensors
from tests.helpers import half_rows

pytestmark = pytest.mark.no_shape_checks
transformers = pytest.importorskip("transformers")


def k_permuted_with_n(w: np.ndarray) -> np.ndarray:
    """As a converter does that takes N heads for K's: Meta's rows made half ones with 6 heads, not 2."""
    interleaved = np.empty_like(w)
    interleaved[half_rows(len(w), 2)] = w
    return interleaved[half_rows(len(w), 6)]


def tiled(w: np.ndarray) -> np.ndarray:
    return np.concatenate([w[12 * n : 12 * n + 12] for n in (0, 3, 1, 4, 2, 5)])


PLANTED: dict[str, tuple[str, str, dict[str, Any], Any, str, str]] = {
    "K permuted with N heads": ("llama", K_PROJ, {}, k_permuted_with_n, "layer 1 attention", "k_proj"),
    "query heads tiled": ("llama", Q_PROJ, {}, tiled, "layer 1 attention", "q_proj"),
    "norm stored as 1 + w": ("gemma3", Q_NORM, {}, lambda w: w + 1, "layer 2 attention", "q_norm"),
    "window off by one": ("gemma3", "", {"sliding_window": 6}, None, "layer 0 attention", "masked"),
    "scale": ("gemma3", "", {"query_pre_attn_scalar": 12}, None, "layer 0 attention", "scores"),
    "a feed-forward weight": (
        "llama",
        "model.layers.0.mlp.up_proj.weight",
        {},
        lambda w: w * np.float32(1.01),
        "blocks.0.feed_forward.up.weight",
        "weight",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_bug_is_named(request, tmp_path, case):
    family, name, settings, change, place, stage = PLANTED[case]
    source = request.getfixturevalue(family)
    arrays = {name: np.ascontiguousarray(change(tensors(source)[name]))} if change else {}
    wrong = edited(source, tmp_path / "wrong", settings, **arrays)
    result = run("verify", source, wrong)
    assert result.exit_code == 1
    assert f"first difference: {place}, {stage}" in result.stdout
    # the same difference is found from any layout
    ok("port", source, tmp_path / "ported", "--to", "canonical")
    found = json.loads(run("verify", tmp_path / "ported", wrong, "--json", "-").stdout)["first_difference"]
    assert (found["place"], found["stage"]) == (place, stage)


def test_backends_are_chosen(llama):
    swapped = ok("verify", llama, llama, "--backend", "torch", "--backend", "numpy", "--json", "-")
    assert json.loads(swapped.stdout)["backends"] == ["torch", "numpy"]
    assert (
        json.loads(ok("verify", llama, llama, "--backend", "numpy", "--json", "-").stdout)["backends"] == ["numpy"] * 2
    )
    for wrong in (("mlx",), ("numpy", "torch", "jax")):
        result = run("verify", llama, llama, *(word for name in wrong for word in ("--backend", name)))
        assert result.exit_code == 2
        assert "--backend" in result.stderr


def test_inspect_counts_what_transformers_counts(llama, gemma3):
    found = json.loads(ok("inspect", llama, "--json", "-").stdout)
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes"] == 4 * found["parameters"]
    assert found["cache_bytes_per_token"] == 2 * (2 * 2 * 12 * 4)  # layers, keys and values, K, H, bytes
    assert (found["family"], found["layers"], found["embed_dim"], found["head_size"]) == ("llama", 2, 72, 12)
    assert (found["query_heads"], found["kv_heads"], found["query_heads_per_kv_head"]) == (6, 2, 3)
    assert found["dtype"] == f"float32 ({found['tensors']})"
    assert found["rope"] == "theta 10,000, rows paired half"
    both = json.loads(ok("inspect", gemma3, "--json", "-").stdout)
    assert both["rope"] == "theta 10,000, rows paired half on 2 layers; theta 1,000,000, rows paired half on 1 layers"
    assert both["window"] == "5 on 2 layers; none on 1 layers"
    assert both["qk_norm"] == "rms_plus_one"
    table = ok("inspect", gemma3).stdout
    assert "gemma3_text" in table
    assert "cache bytes per token" in table


def test_the_porting_study_runs_and_leaves_nothing(tmp_path):
    """The speed is not tested, only that every byte of attention is transposed."""
    found = tmp_path / "found.json"
    ok("study", "porting", "--gigabytes", 0.01, "--rounds", 1, "--folder", tmp_path, "--json", found)
    (row,) = json.loads(found.read_text())["rows"]
    assert row["gigabytes"] == pytest.approx(0.01, rel=0.2)
    assert row["transposed"] > 0.4
    assert row["port_seconds"] > 0
    assert row["cp_seconds"] > 0
    assert list(tmp_path.iterdir()) == [found]

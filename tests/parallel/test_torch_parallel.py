"""gqa_torch over a mesh of four processes: equal to one process, in gradients, text, steps and checkpoints."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.torch_ranks import CONTEXTS, KV_HEADS, MESHES, MODELS, RANKS, work

ON = [f"{d} x {t}" for d, t in MESHES]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> dict[str, Any]:
    """Everything that the ranks found, by one start of them."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, checkpoints), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("mesh", ON)
def test_gradients_text_and_weights_are_those_of_one_process(found, mesh):
    for num_kv_heads in KV_HEADS:
        for name in MODELS:
            assert found[f"{mesh}: gradients, {name}, K = {num_kv_heads}"] <= 1e-12
        assert found[f"{mesh}: text, K = {num_kv_heads}"]
        assert found[f"{mesh}: weights, K = {num_kv_heads}"]


@pytest.mark.parametrize("mesh", ON)
def test_five_clipped_steps_are_those_of_one_process(found, mesh):
    assert found[f"{mesh}: five steps"] <= 1e-12


def test_whole_weights_stay_equal_on_all_ranks(found):
    assert found["1 x 4: whole weights equal"]


@pytest.mark.parametrize("mesh", [*ON, "one process"])
def test_a_distributed_checkpoint_loads_on_another_mesh_bit_by_bit(found, mesh):
    assert found[f"checkpoint, 2 x 2 to {mesh}"]


@pytest.mark.parametrize("mesh", ON)
def test_a_checkpoint_is_read_into_the_parts_of_each_rank(found, mesh):
    assert found[f"{mesh}: text of a checkpoint"]
    assert found[f"{mesh}: weights of a checkpoint"]
    assert found[f"{mesh}: share of the weights"] <= 1.2 / RANKS


def test_what_one_rank_cannot_read_no_rank_waits_for(found):
    others = "/gguf.gguf: not read, since another rank could not read its part"
    assert found["missing"] == [others, "/missing: no such file or folder", others, others]


@pytest.mark.parametrize("name", CONTEXTS)
def test_context_parallel(found, name):
    assert found[f"context, {name}"] <= 1e-12
    assert found[f"gradients in context, {name}"] <= 1e-11


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "N",
            "tensor: expected a size that divides N = 6, and divides K = 3 or is a multiple of it: one of 1, 3, 6",
        ),
        ("rms_full", "qk_norm: expected a norm of each head, got 'rms_full'"),
        ("axis", "tensor: expected an axis of the mesh, data, tensor, got 'model'"),
        ("none", "tensor, data, context: expected at least one axis of the mesh"),
    ],
)
def test_what_is_refused_changes_nothing(found, name, sentence):
    assert found[f"1 x 4: refused, {name}"].startswith(sentence)
    assert found[f"1 x 4: unchanged, {name}"]


def test_a_plan_that_cuts_shared_heads_apart_raises(found):
    """ColwiseParallel on q, k and v with K < tensor was silently wrong."""
    assert "1 x 4: a plan without parallelize" not in found


def test_the_example_of_the_guide_runs(found):
    [row] = found["example"]
    assert len(row) == 5

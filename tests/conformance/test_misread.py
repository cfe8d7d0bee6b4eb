"""A fused tensor read in another order than it was written in is named, in `verify` too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformance.trace.fused import misread
from conformance.trace.models import verify
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.config import weight_shapes
from gqa_spec.model_config import model_weight_shapes
from tests.helpers import Model

pytestmark = pytest.mark.no_shape_checks
PLAIN = AttentionConfig(embed_dim=14, num_heads=6, num_kv_heads=2, head_dim=5, v_head_dim=3, causal=True)
GATED = replace(PLAIN, output_gate=True)
BY_GROUP = "[G query heads | key head | value head] for each KV head"


def drawn(config: AttentionConfig) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in weight_shapes(config).items()}


def by_group(weights: dict[str, Any]) -> np.ndarray:
    """The tensor of GPT-NeoX and Megatron, by hand."""
    pieces = []
    for head in range(2):
        pieces += [weights["q_proj.weight"][15 * head : 15 * head + 15]]
        pieces += [weights["k_proj.weight"][5 * head : 5 * head + 5], weights["v_proj.weight"][3 * head : 3 * head + 3]]
    return np.concatenate(pieces)


def in_blocks(tensor: np.ndarray) -> dict[str, Any]:
    return dict(zip(("q_proj.weight", "k_proj.weight", "v_proj.weight"), np.split(tensor, (30, 40)), strict=True))


def gates_by_head(weights: dict[str, Any]) -> np.ndarray:
    """The tensor of Qwen3-Next, by hand."""
    q, gate = weights["q_proj.weight"].reshape(6, 5, 14), weights["gate_proj.weight"].reshape(6, 3, 14)
    return np.concatenate([np.concatenate([q[head], gate[head]]) for head in range(6)])


def test_what_holds_groups_was_read_as_blocks() -> None:
    right = drawn(PLAIN)
    wrong = right | in_blocks(by_group(right))
    (found,) = misread(PLAIN, right, wrong)
    assert found == f"B's q_proj, k_proj, v_proj were read as [q | k | v] from a tensor that holds {BY_GROUP}"
    (found,) = misread(PLAIN, wrong, right)
    assert found == f"B's q_proj, k_proj, v_proj were read as {BY_GROUP} from a tensor that holds [q | k | v]"


def test_what_holds_gates_for_each_head_was_read_as_halves() -> None:
    right = drawn(GATED)
    q, gate = np.split(gates_by_head(right), (30,))
    wrong = right | {"q_proj.weight": q, "gate_proj.weight": gate}
    order = "[query | gate] for each head", "[all queries | all gates]"
    (found,) = misread(GATED, right, wrong)
    assert found == f"B's q_proj, gate_proj were read as {order[1]} from a tensor that holds {order[0]}"
    (found,) = misread(GATED, wrong, right)
    assert found == f"B's q_proj, gate_proj were read as {order[0]} from a tensor that holds {order[1]}"


def test_exchanged_gates_are_named() -> None:
    config = replace(GATED, v_head_dim=5)
    right = drawn(config)
    wrong = right | {"q_proj.weight": right["gate_proj.weight"], "gate_proj.weight": right["q_proj.weight"]}
    assert list(misread(config, right, wrong)) == ["B's q_proj is A's gate_proj, and the other way round"]


def test_nothing_is_said_of_other_differences() -> None:
    for config in (PLAIN, GATED):
        right = drawn(config)
        assert list(misread(config, right, right)) == []
        assert list(misread(config, right, right | {"q_proj.weight": right["q_proj.weight"] + 1})) == []
    one_head = replace(PLAIN, num_heads=1, num_kv_heads=1, v_head_dim=5)  # both orders are the same
    assert list(misread(one_head, drawn(one_head), drawn(one_head))) == []


def test_verify_gives_the_name() -> None:
    config = ModelConfig(attention=(GATED,), feed_forward_size=9, vocab_size=11)
    sides = []
    for misplaced in (False, True):
        weights = drawn(GATED)
        if misplaced:
            q, gate = np.split(gates_by_head(weights), (30,))
            weights |= {"q_proj.weight": q, "gate_proj.weight": gate}
        around = np.random.default_rng(1)
        whole = {n: around.normal(size=s) for n, s in model_weight_shapes(config).items()}
        sides.append(Model(config, whole | {f"blocks.0.attention.{n}": x for n, x in weights.items()}))
    (found,) = (verdict for verdict in verify(*sides) if not verdict.same)
    assert found.stage == "q_proj"
    assert "read as [all queries | all gates] from a tensor that holds [query | gate] for each head" in found.reason

"""Layouts: there and back bit for bit, one tensor at a time too; and the order of rows that RoPE rotates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqa_spec import AttentionConfig, RopeConfig
from gqa_spec.config import QKNorm
from gqa_weights import (
    LAYOUTS,
    canonical_tensor,
    foreign_shapes,
    foreign_tensor,
    from_canonical,
    rounded_weights,
    sources,
    to_canonical,
    weight_shapes,
)
from tests.helpers import assert_same_bits, random_weights
from tests.weights.layout_cases import (
    DTYPES,
    HALF,
    INTERLEAVED,
    config_for,
    to_half_as_hugging_face,
    to_interleaved_as_llama_cpp,
)

pytestmark = pytest.mark.no_shape_checks


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from([(8, 2), (64, 8), (6, 2), (3, 3), (5, 1), (9, 3)]),
    H=st.sampled_from([4, 6, 10]),
    dtype=st.sampled_from(DTYPES),
    rope=st.sampled_from(
        [
            None,
            RopeConfig(),
            RopeConfig(pairing="interleaved"),
            RopeConfig(rotary_dim=4),
            RopeConfig(pairing="interleaved", rotary_dim=2),
        ]
    ),
    full_norm=st.booleans(),
)
def test_there_and_back_is_bit_exact(
    layout: str, groups: tuple[int, int], H: int, dtype: Any, rope: RopeConfig | None, full_norm: bool
) -> None:
    config, table = config_for(layout, groups[0], groups[1], H, rope=rope), LAYOUTS[layout]
    if full_norm and config.qk_norm == "rms":
        config = replace(config, qk_norm="rms_full")
        if table.norm_over == "head":
            with pytest.raises(ValueError, match=f"{layout}: expected a QK-norm over head, got qk_norm = rms_full"):
                foreign_shapes(table, config)
            return
    weights = random_weights(weight_shapes(config), dtype)
    assert rounded_weights(table, config) == ()
    assert_same_bits(to_canonical(table, from_canonical(table, weights, config), config), weights)
    foreign = random_weights(foreign_shapes(table, config), dtype)
    assert_same_bits(from_canonical(table, to_canonical(table, foreign, config), config), foreign)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_pattern_survives(layout: str) -> None:
    """NaN payloads, negative zeros and subnormals too."""
    config, rng = config_for(layout, 8, 2, 6, rope=RopeConfig()), np.random.default_rng(1)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        weights = {
            name: rng.integers(0, 2**16, shape, dtype=np.uint16).view(dtype)
            for name, shape in weight_shapes(config).items()
        }
        assert_same_bits(
            to_canonical(LAYOUTS[layout], from_canonical(LAYOUTS[layout], weights, config), config), weights
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_tensor_at_a_time_is_the_same(layout: str) -> None:
    """And reads no more than that tensor is made of."""
    config = config_for(layout, 6, 2, 4, rope=RopeConfig())
    table, weights = LAYOUTS[layout], random_weights(weight_shapes(config))
    foreign = from_canonical(table, weights, config)
    inside = sources(table, config)
    assert sorted(name for names in inside.values() for name in names) == sorted(weights)
    for name, x in foreign.items():
        one = foreign_tensor(table, name, {ours: weights[ours] for ours in inside[name]}, config)
        assert_same_bits({name: one}, {name: x})
        for ours in inside[name]:
            assert_same_bits({ours: canonical_tensor(table, ours, {name: x}, config)}, {ours: weights[ours]})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_given_is_modified(layout: str) -> None:
    config = config_for(layout, 6, 2, 4, rope=RopeConfig())
    weights = random_weights(weight_shapes(config))
    for x in weights.values():
        x.flags.writeable = False
    foreign = from_canonical(LAYOUTS[layout], weights, config)
    for x in foreign.values():
        x.flags.writeable = False
    to_canonical(LAYOUTS[layout], foreign, config)


# --- the RoPE pairing ------------------------------------------------------------------------------------------------

STORED_INTERLEAVED = {"meta.llama": ("wq", "wk"), "gguf.llama": ("attn_q", "attn_k"), "torchtune": ("q_proj", "k_proj")}


@pytest.mark.parametrize("layout", STORED_INTERLEAVED)
@pytest.mark.parametrize(("N", "K"), [(8, 2), (64, 8), (6, 3), (5, 1)])
def test_interleaved_rows_are_those_of_the_public_converters(layout: str, N: int, K: int) -> None:
    # 8 rows a head: a permutation of K with N or N / K heads, as llama.cpp once had, then fits the shape.
    config = AttentionConfig(embed_dim=11, num_heads=N, num_kv_heads=K, head_dim=8, rope=HALF)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS[layout], weights, config)
    for ours, theirs, heads in zip(("q_proj", "k_proj"), STORED_INTERLEAVED[layout], (N, K), strict=True):
        rows, kept = stored[f"{theirs}.weight"], weights[f"{ours}.weight"]
        np.testing.assert_array_equal(rows, to_interleaved_as_llama_cpp(kept, heads))
        np.testing.assert_array_equal(to_half_as_hugging_face(rows, heads), kept)


@pytest.mark.parametrize("qk_norm", ["rms", "rms_full"])
@pytest.mark.parametrize("rotary_dim", [None, 4])
def test_biases_and_norms_are_paired_like_their_rows(qk_norm: QKNorm, rotary_dim: int | None) -> None:
    """Element by element: dimension d < R of a head goes to 2 d, d + R / 2 to 2 d + 1, all past R stay."""
    N, K, H = 8, 2, 10
    R = rotary_dim or H
    config = config_for("gguf.llama", N, K, H, rope=RopeConfig(rotary_dim=rotary_dim), qk_norm=qk_norm)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS["gguf.llama"], weights, config)
    place = {d: 2 * d if d < R // 2 else 2 * (d - R // 2) + 1 for d in range(R)} | {d: d for d in range(R, H)}
    full = qk_norm == "rms_full"
    tensors = {
        "q_proj.weight": ("attn_q.weight", N),
        "q_proj.bias": ("attn_q.bias", N),
        "k_proj.weight": ("attn_k.weight", K),
        "k_proj.bias": ("attn_k.bias", K),
        "q_norm.weight": ("attn_q_norm.weight", N if full else 1),
        "k_norm.weight": ("attn_k_norm.weight", K if full else 1),
    }
    for ours, (theirs, heads) in tensors.items():
        assert weights[ours].shape[0] == heads * H
        for head in range(heads):
            for d in range(H):
                np.testing.assert_array_equal(stored[theirs][head * H + place[d]], weights[ours][head * H + d])
    for ours, theirs in (("v_proj", "attn_v"), ("o_proj", "attn_output")):
        np.testing.assert_array_equal(stored[f"{theirs}.weight"], weights[f"{ours}.weight"])
        np.testing.assert_array_equal(stored[f"{theirs}.bias"], weights[f"{ours}.bias"])
    np.testing.assert_array_equal(stored["attn_sinks.weight"], weights["sinks"])


@pytest.mark.parametrize(
    ("layout", "rope", "moved"),
    [
        ("meta.llama", INTERLEAVED, False),
        ("meta.llama", None, False),
        ("meta.llama", HALF, True),
        ("gguf.llama", INTERLEAVED, False),
        ("gguf.qwen2", HALF, False),
        ("gguf.qwen2", INTERLEAVED, True),
        ("gguf.gemma3", HALF, False),
        ("huggingface", HALF, False),
        ("huggingface", INTERLEAVED, True),
        ("canonical", HALF, False),
        ("canonical", INTERLEAVED, False),
        ("torchtune.qwen2", HALF, False),
    ],
)
def test_rows_move_only_where_the_pairings_differ(layout: str, rope: RopeConfig | None, moved: bool) -> None:
    config = AttentionConfig(embed_dim=11, num_heads=6, num_kv_heads=2, head_dim=4, rope=rope)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS[layout], weights, config)
    assert list(sources(LAYOUTS[layout], config).values()) == [(name,) for name in weights]
    same = {
        ours: np.array_equal(stored[theirs], weights[ours])
        for theirs, (ours,) in sources(LAYOUTS[layout], config).items()
    }
    expected = {"q_proj.weight": not moved, "k_proj.weight": not moved, "v_proj.weight": True, "o_proj.weight": True}
    assert same == expected


def test_interleaved_config_is_stored_half_by_hugging_face() -> None:
    config = AttentionConfig(embed_dim=11, num_heads=8, num_kv_heads=2, head_dim=6, rope=INTERLEAVED)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS["huggingface"], weights, config)
    for name, heads in (("q_proj.weight", 8), ("k_proj.weight", 2)):
        np.testing.assert_array_equal(stored[name], to_half_as_hugging_face(weights[name], heads))

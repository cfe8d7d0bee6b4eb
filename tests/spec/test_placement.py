"""Which axis of each weight is cut over a mesh: read off the symbolic shapes, and refused where it would be wrong."""

from __future__ import annotations

from math import prod

import pytest

from gqa_spec import AttentionConfig, ExpertsConfig, ModelConfig
from gqa_spec.config import weight_shapes
from gqa_spec.model_config import model_weight_shapes
from gqa_spec.placement import cut_axes, kv_head_copies, local_config

LAYER = AttentionConfig(
    embed_dim=40,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    v_head_dim=10,
    qkv_bias=True,
    out_bias=True,
    sinks=True,
    qk_norm="rms",
)
QUERIES = {"q_proj.weight": 0, "q_proj.bias": 0, "o_proj.weight": 1, "o_proj.bias": None, "sinks": 0}
NORMS = {"q_norm.weight": None, "k_norm.weight": None}


@pytest.mark.parametrize(("tensor", "kv"), [(2, 0), (4, 0), (8, None)])
def test_heads_are_cut_and_shared_kv_heads_stay_whole(tensor, kv):
    keys = {f"{module}_proj.{kind}": kv for module in ("k", "v") for kind in ("weight", "bias")}
    assert cut_axes(LAYER, tensor) == QUERIES | keys | NORMS


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_part_has_the_shapes_of_its_local_config(tensor):
    local = weight_shapes(local_config(LAYER, tensor))
    for name, axis in cut_axes(LAYER, tensor).items():
        shape = list(weight_shapes(LAYER)[name])
        if axis is not None:
            shape[axis] //= tensor
        assert local[name] == tuple(shape)


def test_each_part_reads_one_shared_kv_head():
    assert local_config(LAYER, 8).num_kv_heads == 1
    assert [kv_head_copies(LAYER, tensor) for tensor in (1, 2, 4, 8)] == [1, 1, 1, 2]


def test_a_model_is_cut_by_vocabulary_and_feed_forward():
    model = ModelConfig(attention=(LAYER, LAYER), feed_forward_size=24, vocab_size=36)
    axes = cut_axes(model, 4)
    assert axes.keys() == model_weight_shapes(model).keys()
    assert (axes["embed.weight"], axes["head.weight"], axes["norm.weight"]) == (0, 0, None)
    assert (axes["blocks.1.feed_forward.up.weight"], axes["blocks.1.feed_forward.down.weight"]) == (0, 1)
    assert axes["blocks.1.attention.o_proj.weight"] == 1
    assert cut_axes(ModelConfig(attention=(LAYER,), feed_forward_size=24, vocab_size=37), 4)["embed.weight"] is None


def test_llama_2_70b_on_8_devices_holds_an_eighth():
    layer = AttentionConfig(embed_dim=8192, num_heads=64, num_kv_heads=8)
    model = ModelConfig(attention=(layer,) * 80, feed_forward_size=28672, vocab_size=32000)
    shapes, axes = model_weight_shapes(model), cut_axes(model, 8)
    held = sum(prod(shapes[name]) // (8 if axes[name] is not None else 1) for name in shapes)
    assert round(held * 2 / 2**30, 2) == 16.06  # GiB in bfloat16


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor", "sizes"), [(6, 3, 2, "1, 3, 6"), (12, 3, 4, "1, 3, 6, 12"), (8, 8, 3, "1, 2, 4, 8")]
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(heads, kv_heads, tensor, sizes):
    config = AttentionConfig(embed_dim=24, num_heads=heads, num_kv_heads=kv_heads)
    for refused in (cut_axes, local_config, kv_head_copies):
        with pytest.raises(ValueError, match=f"tensor: expected a size that divides N = {heads}.*one of {sizes}; got"):
            refused(config, tensor)


def test_a_feed_forward_that_does_not_fit_is_refused():
    model = ModelConfig(attention=(LAYER,), feed_forward_size=22, vocab_size=36)
    with pytest.raises(ValueError, match=r"divides N = 8 and F = 22, .*one of 1, 2; got 4"):
        cut_axes(model, 4)


def test_a_norm_over_all_heads_is_refused():
    config = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=3, qk_norm="rms_full")
    assert set(cut_axes(config, 1)) == set(weight_shapes(config))
    with pytest.raises(ValueError, match="qk_norm: expected a norm of each head, got 'rms_full'"):
        cut_axes(config, 3)


def test_experts_are_not_cut():
    experts = ExpertsConfig(num_experts=3, num_experts_per_token=2, expert_size=5)
    config = ModelConfig.decoder(vocab_size=8, hidden_size=32, num_heads=8).replace(experts=experts)
    assert cut_axes(config, 1)["blocks.0.feed_forward.experts.2.up.weight"] is None
    with pytest.raises(ValueError, match=r"tensor: expected 1 for a model with experts, .* got 2 and X = 3"):
        cut_axes(config, 2)

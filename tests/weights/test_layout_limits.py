"""Layouts: what one cannot express is refused by name, and what was stored is stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gqa_spec import AttentionConfig
from gqa_weights import (
    LAYOUTS,
    conventions,
    foreign_shapes,
    from_canonical,
    to_canonical,
    weight_shapes,
)
from tests.helpers import random_weights
from tests.weights.layout_cases import (
    HALF,
    INTERLEAVED,
    config_for,
)

pytestmark = pytest.mark.no_shape_checks


# --- what a layout cannot express ------------------------------------------------------------------------------------


ONE_FLAG = "expected qkv_bias == out_bias"


def refused(layout: str, config: AttentionConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{layout}: {sentence}$"):
        from_canonical(LAYOUTS[layout], random_weights(weight_shapes(config)), config)
    with pytest.raises(ValueError, match=f"^{layout}: {sentence}$"):
        to_canonical(LAYOUTS[layout], {}, config)


@pytest.mark.parametrize(
    ("layout", "further", "sentence"),
    [
        ("torch.nn.MultiheadAttention", {"sinks": True}, "has no place for sinks"),
        ("torch.nn.MultiheadAttention", {"num_kv_heads": 2}, "expected K == N, got K = 2, N = 6"),
        ("torch.nn.MultiheadAttention", {"head_dim": 5}, r"expected N \* H == D, got N = 6, H = 5, D = 24"),
        ("torch.nn.MultiheadAttention", {"qkv_bias": True}, f"{ONE_FLAG}, got qkv_bias = True, out_bias = False"),
        ("flax.linen.MultiHeadDotProductAttention", {"num_kv_heads": 3}, "expected K == N, got K = 3, N = 6"),
        ("flax.nnx.MultiHeadAttention", {"v_head_dim": 5}, "expected Hv == H, got Hv = 5, H = 4"),
        ("flax.nnx.MultiHeadAttention", {"qk_norm": "rms"}, "has no place for q_norm.weight, k_norm.weight"),
        ("keras.layers.GroupQueryAttention", {"out_bias": True}, f"{ONE_FLAG}, got qkv_bias = False, out_bias = True"),
        ("meta.llama", {"qkv_bias": True}, "has no place for q_proj.bias, k_proj.bias, v_proj.bias"),
        ("huggingface.phi3", {"kv_dim": 5}, "expected E == D, got E = 5, D = 24"),
        ("gemma", {"v_head_dim": 5}, "expected Hv == H, got Hv = 5, H = 4"),
        ("torchtune", {"qk_norm": "rms"}, "has no place for q_norm.weight, k_norm.weight"),
        ("x-transformers", {"out_bias": True}, "has no place for o_proj.bias"),
        ("megatron", {"sinks": True}, "has no place for sinks"),
        ("megatron", {"output_gate": True}, "has no place for gate_proj.weight"),
        ("huggingface.gated", {}, "has no place for q_proj.weight"),
    ],
)
def test_a_config_that_a_layout_cannot_hold_is_refused_by_name(
    layout: str, further: dict[str, Any], sentence: str
) -> None:
    refused(layout, AttentionConfig(**{"embed_dim": 24, "num_heads": 6, **further}), sentence)


@pytest.mark.parametrize(
    ("layout", "weights", "arguments", "sentence"),
    [
        (
            "torch.nn.MultiheadAttention",
            ("bias_k", "bias_v"),
            {},
            "bias_k: add_bias_kv appends .*; bias_v: add_bias_kv",
        ),
        (
            "torch.nn.MultiheadAttention",
            (),
            {"add_zero_attn": True},
            "add_zero_attn: it appends a key and value of zeros",
        ),
        ("torch.nn.MultiheadAttention", (), {"add_bias_kv": True}, "add_bias_kv: add_bias_kv appends"),
        ("flax.nnx.MultiHeadAttention", ("query_ln.scale",), {}, "query_ln.scale: normalize_qk is a LayerNorm"),
        ("flax.linen.MultiHeadDotProductAttention", ("key_ln.scale",), {}, "key_ln.scale: normalize_qk is a LayerNorm"),
        ("torchtune", ("q_norm.scale",), {}, "q_norm.scale: torchtune norms after RoPE"),
        ("litgpt", (), {"rope_interleave": True}, "rope_interleave: this layout's rows are paired half"),
        ("megatron", ("q_layernorm.bias",), {}, "q_layernorm.bias: a norm with a bias is a LayerNorm"),
    ],
)
def test_what_the_canonical_weights_cannot_express_is_refused_by_name(
    layout: str, weights: tuple[str, ...], arguments: dict[str, Any], sentence: str
) -> None:
    config = AttentionConfig(embed_dim=24, num_heads=6)
    foreign = random_weights(foreign_shapes(LAYOUTS[layout], config))
    off = dict.fromkeys(arguments, False)
    assert list(to_canonical(LAYOUTS[layout], foreign, config, off)) == list(weight_shapes(config))
    foreign |= {name: np.zeros(24) for name in weights}
    with pytest.raises(ValueError, match=f"^{layout}: cannot express {sentence}"):
        to_canonical(LAYOUTS[layout], foreign, config, arguments)


def test_foreign_weights_are_all_named_when_they_do_not_fit() -> None:
    config = AttentionConfig(embed_dim=24, num_heads=6, qkv_bias=True, out_bias=True)
    given = {"in_proj_weight": np.zeros((71, 24)), "spare": np.zeros(24), "out_proj.weight": np.zeros((24, 24))}
    problems = (
        r"^weights: missing in_proj_bias; missing out_proj.bias; unexpected spare; in_proj_weight expected "
        r"\(q_proj.weight, k_proj.weight, v_proj.weight\) = \(72, 24\), got \(71, 24\)$"
    )
    with pytest.raises(ValueError, match=problems):
        to_canonical(LAYOUTS["torch.nn.MultiheadAttention"], given, config)


def test_tensors_of_different_dtypes_are_not_joined() -> None:
    config = AttentionConfig(embed_dim=24, num_heads=6)
    weights = random_weights(weight_shapes(config)) | {"k_proj.weight": np.zeros((24, 24), np.float32)}
    sentence = (
        "^qkv.weight: expected one dtype for the tensors in it, got float64 for q_proj.weight, float32 for k_proj"
    )
    with pytest.raises(TypeError, match=sentence):
        from_canonical(LAYOUTS["litgpt"], weights, config)


# --- what is said about the result -----------------------------------------------------------------------------------


def test_conventions_are_stated() -> None:
    gemma = config_for("gguf.gemma3", 4, 1, 6, rope=HALF, qk_norm="rms_plus_one")
    assert conventions(LAYOUTS["gguf.gemma3"], gemma) == {
        "layout": "gguf.gemma3",
        "pairing": "half",
        "head_order": "contiguous",
        "fused": {},
        "norm_factor": "w",
        "rounded": ["q_norm.weight", "k_norm.weight"],
    }
    plain = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2)
    assert conventions(LAYOUTS["megatron"], plain) == {
        "layout": "megatron",
        "pairing": None,
        "head_order": "contiguous",
        "fused": {"linear_qkv.weight": "q_proj.weight | k_proj.weight | v_proj.weight for each KV head"},
        "norm_factor": None,
        "rounded": [],
    }
    strided = conventions(LAYOUTS["x-transformers"], config_for("x-transformers", 6, 2, 4, rope=HALF))
    assert (strided["head_order"], strided["pairing"], strided["norm_factor"]) == ("strided", "interleaved", None)
    as_it_is = conventions(LAYOUTS["canonical"], config_for("canonical", 6, 2, 4, rope=INTERLEAVED))
    assert (as_it_is["pairing"], as_it_is["norm_factor"]) == ("interleaved", "w")

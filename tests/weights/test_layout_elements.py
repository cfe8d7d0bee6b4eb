"""Layouts: every element where the implementation's own source puts it, and norm weights as it stores them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gqa_spec import RopeConfig
from gqa_weights import (
    LAYOUTS,
    from_canonical,
    rounded_weights,
    to_canonical,
    weight_shapes,
)
from tests.helpers import assert_same_bits, random_weights
from tests.weights.layout_cases import (
    DTYPES,
    HALF,
    INTERLEAVED,
    config_for,
    to_interleaved_as_llama_cpp,
)

pytestmark = pytest.mark.no_shape_checks


N, K, H, D = 6, 2, 4, 11
G = N // K


def placed_in(layout: str, rope: RopeConfig | None = HALF) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    config = config_for(layout, N, K, H, rope=rope)
    weights = random_weights(weight_shapes(config))
    return weights, from_canonical(LAYOUTS[layout], weights, config)


def head(x: np.ndarray, n: int, size: int = H) -> np.ndarray:
    return x[n * size : (n + 1) * size]


@pytest.mark.parametrize(
    ("layout", "fused", "out"),
    [
        ("huggingface.phi3", "qkv_proj", "o_proj"),
        ("litgpt", "qkv", "proj"),
    ],
)
def test_fused_rows_are_q_then_k_then_v(layout: str, fused: str, out: str) -> None:
    weights, stored = placed_in(layout)
    for kind in ("weight", "bias") if "q_proj.bias" in weights else ("weight",):
        expected = np.concatenate([weights[f"{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")])
        np.testing.assert_array_equal(stored[f"{fused}.{kind}"], expected)
        np.testing.assert_array_equal(stored[f"{out}.{kind}"], weights[f"o_proj.{kind}"])
    if layout == "litgpt":
        for name in ("q", "k"):
            np.testing.assert_array_equal(stored[f"norm_{name}.weight"], weights[f"{name}_norm.weight"])


@pytest.mark.parametrize(
    ("layout", "fused", "out"),
    [
        ("gpt_neox", "query_key_value", "dense"),
        ("megatron", "linear_qkv", "linear_proj"),
    ],
)
def test_fused_rows_are_a_group_after_the_other(layout: str, fused: str, out: str) -> None:
    weights, stored = placed_in(layout)
    for kind in ("weight", "bias"):
        q, k, v = (weights[f"{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj"))
        blocks = []
        for group in range(K):
            blocks += [head(q, group * G + member) for member in range(G)] + [head(k, group), head(v, group)]
        np.testing.assert_array_equal(stored[f"{fused}.{kind}"], np.concatenate(blocks))
        np.testing.assert_array_equal(stored[f"{out}.{kind}"], weights[f"o_proj.{kind}"])


def test_groups_are_taken_apart_as_litgpt_does() -> None:
    """`qkv_reassemble` of litgpt's convert_hf_checkpoint.py, which reads per-group files into its own [q | k | v]."""
    config = config_for("litgpt", N, K, H, qk_norm=None, rope=HALF)
    weights = random_weights(weight_shapes(config))
    param = from_canonical(LAYOUTS["megatron"], weights, config)["linear_qkv.weight"]
    qs, ks, vs = [], [], []
    for chunk in np.split(param, K):
        q, k, v = np.split(chunk, [H * G, H * G + H])
        qs.append(q)
        ks.append(k)
        vs.append(v)
    expected = np.concatenate((np.concatenate(qs), np.concatenate(ks), np.concatenate(vs)))
    np.testing.assert_array_equal(from_canonical(LAYOUTS["litgpt"], weights, config)["qkv.weight"], expected)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("flax.nnx.MultiHeadAttention", ("query.", "key.", "value.", "out.")),
        ("flax.linen.MultiHeadDotProductAttention", ("query.", "key.", "value.", "out.")),
        ("keras.layers.GroupQueryAttention", ("query/", "key/", "value/", "attention_output/")),
    ],
)
def test_dense_kernels_are_inputs_first(layout: str, names: tuple[str, ...]) -> None:
    weights, stored = placed_in(layout)
    heads = {"q_proj": N, "k_proj": N if "linen" in layout else K, "v_proj": N if "linen" in layout else K}
    for ours, theirs in zip(heads, names[:3], strict=True):
        kernel, bias = stored[f"{theirs}kernel"], stored[f"{theirs}bias"]
        assert kernel.shape == (11 if ours == "q_proj" else 13, heads[ours], H)
        for n in range(heads[ours]):
            np.testing.assert_array_equal(kernel[:, n], head(weights[f"{ours}.weight"], n).T)
            np.testing.assert_array_equal(bias[n], head(weights[f"{ours}.bias"], n))
    for n in range(N):
        np.testing.assert_array_equal(stored[f"{names[3]}kernel"][n], head(weights["o_proj.weight"].T, n))
    np.testing.assert_array_equal(stored[f"{names[3]}bias"], weights["o_proj.bias"])


def test_gemma_stacks_keys_and_values() -> None:
    weights, stored = placed_in("gemma")
    q, k, v, o = (weights[f"{name}.weight"] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert set(stored) == {"q_einsum.w", "kv_einsum.w", "attn_vec_einsum.w", "_query_norm.scale", "_key_norm.scale"}
    assert stored["kv_einsum.w"].shape == (2, K, D, H)
    for n in range(N):
        np.testing.assert_array_equal(stored["q_einsum.w"][n], head(q, n).T)
        np.testing.assert_array_equal(stored["attn_vec_einsum.w"][n], head(o.T, n))
    for n in range(K):
        np.testing.assert_array_equal(stored["kv_einsum.w"][0, n], head(k, n).T)
        np.testing.assert_array_equal(stored["kv_einsum.w"][1, n], head(v, n).T)
    np.testing.assert_array_equal(stored["_query_norm.scale"], weights["q_norm.weight"])
    np.testing.assert_array_equal(stored["_key_norm.scale"], weights["k_norm.weight"])


def test_gemma_stacks_all_three_where_no_head_is_shared() -> None:
    config = config_for("gemma", N, N, H, qk_norm=None)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS["gemma"], weights, config)
    assert set(stored) == {"qkv_einsum.w", "attn_vec_einsum.w"}
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        for n in range(N):
            np.testing.assert_array_equal(stored["qkv_einsum.w"][i, n], head(weights[f"{name}.weight"], n).T)


@pytest.mark.parametrize("rope", [None, HALF, INTERLEAVED])
def test_x_transformers_reads_kv_head_m_modulo_k(rope: RopeConfig | None) -> None:
    """`repeat(t, 'b kvh n d -> b (r kvh) n d')` in its attend.py: its query head m reads KV head m % K. Its rotate_half
    pairs 2 d with 2 d + 1.
    """
    weights, stored = placed_in("x-transformers", rope)
    q, keys, o, sinks = weights["q_proj.weight"], weights["k_proj.weight"], weights["o_proj.weight"].T, weights["sinks"]
    if rope is HALF:
        q, keys = to_interleaved_as_llama_cpp(q, N), to_interleaved_as_llama_cpp(keys, K)
    readers = {k: iter(range(k * G, (k + 1) * G)) for k in range(K)}
    for m in range(N):
        ours = next(readers[m % K])
        np.testing.assert_array_equal(head(stored["to_q.weight"], m), head(q, ours))
        np.testing.assert_array_equal(head(stored["to_out.weight"].T, m, 5), head(o, ours, 5))
        assert stored["attend.head_attn_sink"][m] == sinks[ours]
    np.testing.assert_array_equal(stored["to_k.weight"], keys)
    np.testing.assert_array_equal(stored["to_v.weight"], weights["v_proj.weight"])


def test_torch_keeps_three_tensors_where_keys_have_a_width_of_their_own() -> None:
    config = config_for("torch.nn.MultiheadAttention", 3, 3, 5, kv_dim=13)
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(LAYOUTS["torch.nn.MultiheadAttention"], weights, config)
    expected = {
        **{f"{x}_proj_weight": weights[f"{x}_proj.weight"] for x in "qkv"},
        "in_proj_bias": np.concatenate([weights[f"{x}_proj.bias"] for x in "qkv"]),
        "out_proj.weight": weights["o_proj.weight"],
        "out_proj.bias": weights["o_proj.bias"],
    }
    assert_same_bits(stored, expected)


# --- norm weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gguf_stores_gemma_norms_as_one_plus_w(dtype: Any) -> None:
    """llama.cpp's converter: `data_torch + 1`. There and back within 1 ulp of the larger of w and 1 + w."""
    table, config = LAYOUTS["gguf.gemma3"], config_for("gguf.gemma3", 4, 1, 250, qk_norm="rms_plus_one", rope=HALF)
    weights = random_weights(weight_shapes(config), dtype)
    stored = from_canonical(table, weights, config)
    assert rounded_weights(table, config) == ("q_norm.weight", "k_norm.weight")
    back = to_canonical(table, stored, config)
    again = from_canonical(table, back, config)
    spacing = float(ml_dtypes.finfo(dtype).eps)
    for name in weights:
        if name not in rounded_weights(table, config):
            assert_same_bits({name: back[name]}, {name: weights[name]})
    for x in "qk":
        w, s = weights[f"{x}_norm.weight"], stored[f"attn_{x}_norm.weight"]
        assert s.dtype == dtype
        np.testing.assert_array_equal(s, (1 + w.astype(np.float64)).astype(dtype))
        ulp = spacing * 2.0 ** np.floor(np.log2(np.maximum(np.abs(w), np.abs(s)).astype(np.float64)))
        for got, expected in ((back[f"{x}_norm.weight"], w), (again[f"attn_{x}_norm.weight"], s)):
            error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
            assert np.all(error <= ulp)
            assert got.dtype == dtype
        large = s >= 0.5
        np.testing.assert_array_equal(again[f"attn_{x}_norm.weight"][large], s[large])


def test_gemma_stores_other_norms_less_one() -> None:
    """google-deepmind/gemma multiplies by 1 + scale, so a weight that multiplies as it is loses 1."""
    table, config = LAYOUTS["gemma"], config_for("gemma", N, K, H, qk_norm="rms")
    weights = random_weights(weight_shapes(config))
    stored = from_canonical(table, weights, config)
    np.testing.assert_array_equal(stored["_query_norm.scale"], weights["q_norm.weight"] - 1)
    assert rounded_weights(table, config) == ("q_norm.weight", "k_norm.weight")


@pytest.mark.parametrize("layout", ["canonical", "huggingface", "litgpt"])
def test_norm_weights_stay_raw_elsewhere(layout: str) -> None:
    config = config_for(layout, N, K, H, qk_norm="rms_plus_one")
    weights = random_weights(weight_shapes(config))
    assert_same_bits(to_canonical(LAYOUTS[layout], from_canonical(LAYOUTS[layout], weights, config), config), weights)
    assert rounded_weights(LAYOUTS[layout], config) == ()

"""Layouts: there and back bit for bit, and every element where the implementation's own source puts it."""

from __future__ import annotations

from collections.abc import Mapping
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
    conventions,
    foreign_shapes,
    foreign_tensor,
    from_canonical,
    rounded_weights,
    sources,
    to_canonical,
    weight_shapes,
)

pytestmark = pytest.mark.no_shape_checks

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
EVERYTHING: dict[str, Any] = {
    "v_head_dim": 5,
    "kv_dim": 13,
    "qkv_bias": True,
    "out_bias": True,
    "sinks": True,
    "qk_norm": "rms",
}
# What the implementations have, as their documentation says; sizes left out are derived from the others.
CAN: dict[str, dict[str, Any]] = {
    "canonical": EVERYTHING,
    "huggingface": EVERYTHING,
    "huggingface.phi3": {},
    "meta.llama": {},
    "gguf.llama": EVERYTHING,
    "gguf.qwen2": EVERYTHING,
    "gguf.gemma3": EVERYTHING,
    "torch.nn.MultiheadAttention": {"qkv_bias": True, "out_bias": True},
    "flax.nnx.MultiHeadAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True},
    "flax.linen.MultiHeadDotProductAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True},
    "keras.layers.GroupQueryAttention": {"kv_dim": 13, "qkv_bias": True, "out_bias": True},
    "gemma": {"qk_norm": "rms_plus_one"},
    "gpt_neox": {"qkv_bias": True, "out_bias": True},
    "megatron": {"qkv_bias": True, "out_bias": True, "qk_norm": "rms"},
    "litgpt": {"qkv_bias": True, "out_bias": True, "qk_norm": "rms"},
    "torchtune": {"qkv_bias": True, "out_bias": True},
    "torchtune.qwen2": {"qkv_bias": True, "out_bias": True},
    "x-transformers": {"v_head_dim": 5, "kv_dim": 13, "sinks": True},
}
MULTI_HEAD = ("torch.nn.MultiheadAttention", "flax.linen.MultiHeadDotProductAttention")
HEADS_FILL_WIDTH = ("torch.nn.MultiheadAttention", "gpt_neox")


def config_for(layout: str, N: int, K: int, H: int, **further: Any) -> AttentionConfig:
    """A config with all that the layout can express; the width is 11 where it is free."""
    K = N if layout in MULTI_HEAD else K
    width = N * H if layout in HEADS_FILL_WIDTH else 11
    given = {"embed_dim": width, "num_heads": N, "num_kv_heads": K, "head_dim": H}
    return AttentionConfig(**{**given, **CAN[layout], **further})


def drawn(shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def same_bits(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, x in expected.items():
        assert got[name].shape == x.shape, name
        assert got[name].dtype == x.dtype, name
        assert got[name].tobytes() == x.tobytes(), name


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from([(8, 2), (64, 8), (6, 2), (3, 3), (5, 1), (9, 3)]),
    H=st.sampled_from([4, 6, 10]),
    dtype=st.sampled_from(DTYPES),
    rope=st.sampled_from([
        None, RopeConfig(), RopeConfig(pairing="interleaved"), RopeConfig(rotary_dim=4),
        RopeConfig(pairing="interleaved", rotary_dim=2),
    ]),
    full_norm=st.booleans(),
)  # fmt: skip
def test_there_and_back_is_bit_exact(
    layout: str, groups: tuple[int, int], H: int, dtype: Any, rope: RopeConfig | None, full_norm: bool
) -> None:
    config = config_for(layout, groups[0], groups[1], H, rope=rope)
    if full_norm and config.qk_norm == "rms":
        config = replace(config, qk_norm="rms_full")
    table = LAYOUTS[layout]
    weights = drawn(weight_shapes(config), dtype)
    assert rounded_weights(table, config) == ()
    same_bits(to_canonical(table, from_canonical(table, weights, config), config), weights)
    foreign = drawn(foreign_shapes(table, config), dtype)
    same_bits(from_canonical(table, to_canonical(table, foreign, config), config), foreign)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_pattern_survives(layout: str) -> None:
    """NaN payloads, negative zeros and subnormals too."""
    config, rng = config_for(layout, 8, 2, 6, rope=RopeConfig()), np.random.default_rng(1)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        weights = {
            name: rng.integers(0, 2**16, shape, dtype=np.uint16).view(dtype)
            for name, shape in weight_shapes(config).items()
        }
        same_bits(to_canonical(LAYOUTS[layout], from_canonical(LAYOUTS[layout], weights, config), config), weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_tensor_at_a_time_is_the_same(layout: str) -> None:
    """And reads no more than that tensor is made of."""
    config = config_for(layout, 6, 2, 4, rope=RopeConfig())
    table, weights = LAYOUTS[layout], drawn(weight_shapes(config))
    foreign = from_canonical(table, weights, config)
    inside = sources(table, config)
    assert sorted(name for names in inside.values() for name in names) == sorted(weights)
    for name, x in foreign.items():
        one = foreign_tensor(table, name, {ours: weights[ours] for ours in inside[name]}, config)
        same_bits({name: one}, {name: x})
        for ours in inside[name]:
            same_bits({ours: canonical_tensor(table, ours, {name: x}, config)}, {ours: weights[ours]})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_given_is_modified(layout: str) -> None:
    config = config_for(layout, 6, 2, 4, rope=RopeConfig())
    weights = drawn(weight_shapes(config))
    for x in weights.values():
        x.flags.writeable = False
    foreign = from_canonical(LAYOUTS[layout], weights, config)
    for x in foreign.values():
        x.flags.writeable = False
    to_canonical(LAYOUTS[layout], foreign, config)


# --- the RoPE pairing ------------------------------------------------------------------------------------------------

HALF, INTERLEAVED = RopeConfig(), RopeConfig(pairing="interleaved")
STORED_INTERLEAVED = {"meta.llama": ("wq", "wk"), "gguf.llama": ("attn_q", "attn_k"), "torchtune": ("q_proj", "k_proj")}


def to_half_as_hugging_face(w: np.ndarray, n_heads: int) -> np.ndarray:
    """`permute` of transformers' convert_llama_weights_to_hf.py: Meta's rows -> Hugging Face's."""
    dim1, dim2 = w.shape
    return w.reshape(n_heads, dim1 // n_heads // 2, 2, dim2).swapaxes(1, 2).reshape(dim1, dim2)


def to_interleaved_as_llama_cpp(weights: np.ndarray, n_head: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py, given K heads for keys: Hugging Face's rows -> GGUF's."""
    return weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(
        weights.shape
    )  # fmt: skip


@pytest.mark.parametrize("layout", STORED_INTERLEAVED)
@pytest.mark.parametrize(("N", "K"), [(8, 2), (64, 8), (6, 3), (5, 1)])
def test_interleaved_rows_are_those_of_the_public_converters(layout: str, N: int, K: int) -> None:
    # 8 rows a head: a permutation of K with N or N / K heads, as llama.cpp once had, then fits the shape.
    config = AttentionConfig(embed_dim=11, num_heads=N, num_kv_heads=K, head_dim=8, rope=HALF)
    weights = drawn(weight_shapes(config))
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
    weights = drawn(weight_shapes(config))
    stored = from_canonical(LAYOUTS["gguf.llama"], weights, config)
    place = {d: 2 * d if d < R // 2 else 2 * (d - R // 2) + 1 for d in range(R)} | {d: d for d in range(R, H)}
    full = qk_norm == "rms_full"
    tensors = {
        "q_proj.weight": ("attn_q.weight", N), "q_proj.bias": ("attn_q.bias", N), "k_proj.weight": ("attn_k.weight", K),
        "k_proj.bias": ("attn_k.bias", K), "q_norm.weight": ("attn_q_norm.weight", N if full else 1),
        "k_norm.weight": ("attn_k_norm.weight", K if full else 1),
    }  # fmt: skip
    for ours, (theirs, heads) in tensors.items():
        assert weights[ours].shape[0] == heads * H
        for head in range(heads):
            for d in range(H):
                np.testing.assert_array_equal(stored[theirs][head * H + place[d]], weights[ours][head * H + d])
    for ours, theirs in (("v_proj", "attn_v"), ("o_proj", "attn_output")):
        np.testing.assert_array_equal(stored[f"{theirs}.weight"], weights[f"{ours}.weight"])
        np.testing.assert_array_equal(stored[f"{theirs}.bias"], weights[f"{ours}.bias"])
    np.testing.assert_array_equal(stored["attn_sinks.weight"], weights["sinks"])


@pytest.mark.parametrize(("layout", "rope", "moved"), [
    ("meta.llama", INTERLEAVED, False), ("meta.llama", None, False), ("meta.llama", HALF, True),
    ("gguf.llama", INTERLEAVED, False), ("gguf.qwen2", HALF, False), ("gguf.qwen2", INTERLEAVED, True),
    ("gguf.gemma3", HALF, False), ("huggingface", HALF, False), ("huggingface", INTERLEAVED, True),
    ("canonical", HALF, False), ("canonical", INTERLEAVED, False), ("torchtune.qwen2", HALF, False),
])  # fmt: skip
def test_rows_move_only_where_the_pairings_differ(layout: str, rope: RopeConfig | None, moved: bool) -> None:
    config = AttentionConfig(embed_dim=11, num_heads=6, num_kv_heads=2, head_dim=4, rope=rope)
    weights = drawn(weight_shapes(config))
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
    weights = drawn(weight_shapes(config))
    stored = from_canonical(LAYOUTS["huggingface"], weights, config)
    for name, heads in (("q_proj.weight", 8), ("k_proj.weight", 2)):
        np.testing.assert_array_equal(stored[name], to_half_as_hugging_face(weights[name], heads))


# --- where each element stands ---------------------------------------------------------------------------------------

N, K, H, D = 6, 2, 4, 11
G = N // K


def placed_in(layout: str, rope: RopeConfig | None = HALF) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    config = config_for(layout, N, K, H, rope=rope)
    weights = drawn(weight_shapes(config))
    return weights, from_canonical(LAYOUTS[layout], weights, config)


def head(x: np.ndarray, n: int, size: int = H) -> np.ndarray:
    return x[n * size : (n + 1) * size]


@pytest.mark.parametrize(("layout", "fused", "out"), [
    ("huggingface.phi3", "qkv_proj", "o_proj"),
    ("litgpt", "qkv", "proj"),
])  # fmt: skip
def test_fused_rows_are_q_then_k_then_v(layout: str, fused: str, out: str) -> None:
    weights, stored = placed_in(layout)
    for kind in ("weight", "bias") if "q_proj.bias" in weights else ("weight",):
        expected = np.concatenate([weights[f"{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")])
        np.testing.assert_array_equal(stored[f"{fused}.{kind}"], expected)
        np.testing.assert_array_equal(stored[f"{out}.{kind}"], weights[f"o_proj.{kind}"])
    if layout == "litgpt":
        for name in ("q", "k"):
            np.testing.assert_array_equal(stored[f"norm_{name}.weight"], weights[f"{name}_norm.weight"])


@pytest.mark.parametrize(("layout", "fused", "out"), [
    ("gpt_neox", "query_key_value", "dense"),
    ("megatron", "linear_qkv", "linear_proj"),
])  # fmt: skip
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
    weights = drawn(weight_shapes(config))
    param = from_canonical(LAYOUTS["megatron"], weights, config)["linear_qkv.weight"]
    qs, ks, vs = [], [], []
    for chunk in np.split(param, K):
        q, k, v = np.split(chunk, [H * G, H * G + H])
        qs.append(q)
        ks.append(k)
        vs.append(v)
    expected = np.concatenate((np.concatenate(qs), np.concatenate(ks), np.concatenate(vs)))
    np.testing.assert_array_equal(from_canonical(LAYOUTS["litgpt"], weights, config)["qkv.weight"], expected)


@pytest.mark.parametrize(("layout", "names"), [
    ("flax.nnx.MultiHeadAttention", ("query.", "key.", "value.", "out.")),
    ("flax.linen.MultiHeadDotProductAttention", ("query.", "key.", "value.", "out.")),
    ("keras.layers.GroupQueryAttention", ("query/", "key/", "value/", "attention_output/")),
])  # fmt: skip
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
    weights = drawn(weight_shapes(config))
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
    weights = drawn(weight_shapes(config))
    stored = from_canonical(LAYOUTS["torch.nn.MultiheadAttention"], weights, config)
    expected = {
        **{f"{x}_proj_weight": weights[f"{x}_proj.weight"] for x in "qkv"},
        "in_proj_bias": np.concatenate([weights[f"{x}_proj.bias"] for x in "qkv"]),
        "out_proj.weight": weights["o_proj.weight"],
        "out_proj.bias": weights["o_proj.bias"],
    }
    same_bits(stored, expected)


# --- norm weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gguf_stores_gemma_norms_as_one_plus_w(dtype: Any) -> None:
    """llama.cpp's converter: `data_torch + 1`. There and back within 1 ulp of the larger of w and 1 + w."""
    table, config = LAYOUTS["gguf.gemma3"], config_for("gguf.gemma3", 4, 1, 250, qk_norm="rms_plus_one", rope=HALF)
    weights = drawn(weight_shapes(config), dtype)
    stored = from_canonical(table, weights, config)
    assert rounded_weights(table, config) == ("q_norm.weight", "k_norm.weight")
    back = to_canonical(table, stored, config)
    again = from_canonical(table, back, config)
    spacing = float(ml_dtypes.finfo(dtype).eps)
    for name in weights:
        if name not in rounded_weights(table, config):
            same_bits({name: back[name]}, {name: weights[name]})
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
    weights = drawn(weight_shapes(config))
    stored = from_canonical(table, weights, config)
    np.testing.assert_array_equal(stored["_query_norm.scale"], weights["q_norm.weight"] - 1)
    assert rounded_weights(table, config) == ("q_norm.weight", "k_norm.weight")


@pytest.mark.parametrize("layout", ["canonical", "huggingface", "litgpt"])
def test_norm_weights_stay_raw_elsewhere(layout: str) -> None:
    config = config_for(layout, N, K, H, qk_norm="rms_plus_one")
    weights = drawn(weight_shapes(config))
    same_bits(to_canonical(LAYOUTS[layout], from_canonical(LAYOUTS[layout], weights, config), config), weights)
    assert rounded_weights(LAYOUTS[layout], config) == ()


# --- what a layout cannot express ------------------------------------------------------------------------------------


ONE_FLAG = "expected qkv_bias == out_bias"


def refused(layout: str, config: AttentionConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{layout}: {sentence}$"):
        from_canonical(LAYOUTS[layout], drawn(weight_shapes(config)), config)
    with pytest.raises(ValueError, match=f"^{layout}: {sentence}$"):
        to_canonical(LAYOUTS[layout], {}, config)


@pytest.mark.parametrize(("layout", "further", "sentence"), [
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
])  # fmt: skip
def test_a_config_that_a_layout_cannot_hold_is_refused_by_name(
    layout: str, further: dict[str, Any], sentence: str
) -> None:
    refused(layout, AttentionConfig(**{"embed_dim": 24, "num_heads": 6, **further}), sentence)


@pytest.mark.parametrize(("layout", "weights", "arguments", "sentence"), [
    ("torch.nn.MultiheadAttention", ("bias_k", "bias_v"), {}, "bias_k: add_bias_kv appends .*; bias_v: add_bias_kv"),
    ("torch.nn.MultiheadAttention", (), {"add_zero_attn": True}, "add_zero_attn: it appends a key and value of zeros"),
    ("torch.nn.MultiheadAttention", (), {"add_bias_kv": True}, "add_bias_kv: add_bias_kv appends"),
    ("keras.layers.GroupQueryAttention", ("gate/kernel",), {}, "gate/kernel: use_gate multiplies"),
    ("keras.layers.GroupQueryAttention", (), {"use_gate": True}, "use_gate: use_gate multiplies"),
    ("flax.nnx.MultiHeadAttention", ("query_ln.scale",), {}, "query_ln.scale: normalize_qk is a LayerNorm"),
    ("flax.linen.MultiHeadDotProductAttention", ("key_ln.scale",), {}, "key_ln.scale: normalize_qk is a LayerNorm"),
    ("torchtune", ("q_norm.scale",), {}, "q_norm.scale: torchtune norms after RoPE"),
    ("litgpt", (), {"rope_interleave": True}, "rope_interleave: this layout's rows are paired half"),
    ("megatron", ("q_layernorm.bias",), {}, "q_layernorm.bias: a norm with a bias is a LayerNorm"),
])  # fmt: skip
def test_what_the_canonical_weights_cannot_express_is_refused_by_name(
    layout: str, weights: tuple[str, ...], arguments: dict[str, Any], sentence: str
) -> None:
    config = AttentionConfig(embed_dim=24, num_heads=6)
    foreign = drawn(foreign_shapes(LAYOUTS[layout], config))
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
    weights = drawn(weight_shapes(config)) | {"k_proj.weight": np.zeros((24, 24), np.float32)}
    sentence = (
        "^qkv.weight: expected one dtype for the tensors in it, got float64 for q_proj.weight, float32 for k_proj"
    )
    with pytest.raises(TypeError, match=sentence):
        from_canonical(LAYOUTS["litgpt"], weights, config)


# --- what is said about the result -----------------------------------------------------------------------------------


def test_conventions_are_stated() -> None:
    gemma = config_for("gguf.gemma3", 4, 1, 6, rope=HALF, qk_norm="rms_plus_one")
    assert conventions(LAYOUTS["gguf.gemma3"], gemma) == {
        "layout": "gguf.gemma3", "pairing": "half", "head_order": "contiguous", "fused": {}, "norm_factor": "w",
        "rounded": ["q_norm.weight", "k_norm.weight"],
    }  # fmt: skip
    plain = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2)
    assert conventions(LAYOUTS["megatron"], plain) == {
        "layout": "megatron", "pairing": None, "head_order": "contiguous",
        "fused": {"linear_qkv.weight": "q_proj.weight | k_proj.weight | v_proj.weight for each KV head"},
        "norm_factor": None, "rounded": [],
    }  # fmt: skip
    strided = conventions(LAYOUTS["x-transformers"], config_for("x-transformers", 6, 2, 4, rope=HALF))
    assert (strided["head_order"], strided["pairing"], strided["norm_factor"]) == ("strided", "interleaved", None)
    as_it_is = conventions(LAYOUTS["canonical"], config_for("canonical", 6, 2, 4, rope=INTERLEAVED))
    assert (as_it_is["pairing"], as_it_is["norm_factor"]) == ("interleaved", "w")

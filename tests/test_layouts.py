"""Layouts: there and back bit for bit, and the layer that results gives the foreign implementation's own output."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.compare import error_of
from conformance.inputs import Call
from conformance.targets import Wing
from gqa_spec import AttentionConfig
from gqa_spec.weights import LAYOUTS, from_canonical, to_canonical, weight_shapes


def drawn(config, dtype=np.float64):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in weight_shapes(config).items()}


def config_for(layout, N, K, H):
    """A config that the layout can express."""
    if layout == "torch.nn.MultiheadAttention":
        return AttentionConfig(embed_dim=N * H, num_heads=N, qkv_bias=True, out_bias=True)
    if layout == "gguf.llama":
        return AttentionConfig(embed_dim=11, num_heads=N, num_kv_heads=K, head_dim=2 * H, v_head_dim=5)
    return AttentionConfig(
        embed_dim=11, num_heads=N, num_kv_heads=K, head_dim=H, v_head_dim=5, kv_dim=13, qkv_bias=True, out_bias=True
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@settings(max_examples=20, deadline=None)
@given(groups=st.sampled_from([(8, 2), (64, 8), (6, 2), (3, 3), (5, 1), (9, 3)]), H=st.sampled_from([2, 3, 6, 7]))
def test_there_and_back_is_bit_exact(layout, dtype, groups, H):
    config = config_for(layout, *groups, H)
    weights = drawn(config, dtype)
    back = to_canonical(LAYOUTS[layout], from_canonical(LAYOUTS[layout], weights, config), config)
    assert list(back) == list(weights)
    assert all(back[name].tobytes() == weights[name].tobytes() for name in weights)
    assert all(back[name].dtype == weights[name].dtype for name in weights)


def test_flax_nnx_gives_its_own_output():
    """flax.nnx.MultiHeadAttention with grouped heads, cross-attention and biases that are not 0."""
    import jax.numpy as jnp
    from flax import nnx

    N, K, H, D, E = 6, 2, 7, 11, 13
    foreign = nnx.MultiHeadAttention(
        num_heads=N, in_features=D, qkv_features=N * H, out_features=D, num_kv_heads=K, in_kv_features=E,
        decode=False, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    state = {}
    for name in ("query", "key", "value", "out"):
        module = getattr(foreign, name)
        module.bias.set_value(jnp.asarray(rng.normal(size=module.bias[...].shape)))
        state[f"{name}.kernel"], state[f"{name}.bias"] = np.asarray(module.kernel[...]), np.asarray(module.bias[...])
    config = AttentionConfig(
        embed_dim=D, num_heads=N, num_kv_heads=K, head_dim=H, kv_dim=E, qkv_bias=True, out_bias=True
    )
    weights = to_canonical(LAYOUTS["flax.nnx.MultiHeadAttention"], state, config)
    query, key = rng.normal(size=(2, 3, D)), rng.normal(size=(2, 5, E))
    # sow_weights takes flax's own kernel; its other path is jax.nn's, whose softmax is float32 even here.
    expected = np.asarray(foreign(jnp.asarray(query), jnp.asarray(key), sow_weights=True))
    for name in ("numpy", "torch", "jax"):
        layer = Wing(name).layer(config, "float64")
        layer.load(weights)
        output, _ = layer(Call(query, key, None, None, {}))
        assert error_of(output, expected) <= 1e-12, name


def test_interleaved_rows_become_half_rows():
    """GGUF's llama rows turned in interleaved pairs are canonical rows turned in half pairs."""
    from gqa_spec import RopeConfig

    sizes = {"embed_dim": 11, "num_heads": 6, "num_kv_heads": 2, "head_dim": 12, "causal": True}
    half = AttentionConfig(**sizes, rope=RopeConfig())
    interleaved = AttentionConfig(**sizes, rope=RopeConfig(pairing="interleaved"))
    weights = drawn(half)
    stored = from_canonical(LAYOUTS["gguf.llama"], weights, half)
    renamed = dict(zip(weights, stored.values(), strict=True))
    x = np.random.default_rng(2).normal(size=(2, 7, 11))
    results = []
    for config, loaded in ((half, weights), (interleaved, renamed)):
        layer = Wing("numpy").layer(config, "float64")
        layer.load(loaded)
        results.append(layer(Call(x, None, None, None, {})))
    assert not np.array_equal(weights["k_proj.weight"], stored["attn_k.weight"])
    assert error_of(results[0][0], results[1][0]) <= 1e-12


def test_what_a_layout_cannot_hold_is_refused_by_name():
    config = AttentionConfig(embed_dim=24, num_heads=6, sinks=True)
    with pytest.raises(ValueError, match=r"torch.nn.MultiheadAttention: has no place for sinks"):
        from_canonical(LAYOUTS["torch.nn.MultiheadAttention"], drawn(config), config)


def test_foreign_weights_are_all_named_when_they_do_not_fit():
    config = AttentionConfig(embed_dim=24, num_heads=6, qkv_bias=True)
    given = {"in_proj_weight": np.zeros((71, 24)), "bias_k": np.zeros(24), "out_proj.weight": np.zeros((24, 24))}
    with pytest.raises(ValueError, match="missing in_proj_bias; unexpected bias_k; in_proj_weight expected"):
        to_canonical(LAYOUTS["torch.nn.MultiheadAttention"], given, config)

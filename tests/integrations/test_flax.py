"""`attention_fn` in flax's own modules, against the function that they use themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from gqa_jax.integrations.flax import attention_fn

B, T, S, D, N, K = 2, 7, 11, 24, 6, 2


def drawn(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def layers(num_kv_heads: int = K, **settings: Any) -> tuple[Any, Any]:
    """flax's own and ours, with the same weights and the same random numbers."""
    settings = {"num_kv_heads": num_kv_heads, "in_features": D, "decode": False} | settings
    return tuple(
        nnx.MultiHeadAttention(N, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(), **settings, **own)
        for own in ({}, {"attention_fn": attention_fn})
    )


def assert_close(got: Any, wanted: Any) -> None:
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert jnp.abs(got - wanted).max() <= 1e-6 * max(1, jnp.abs(wanted).max())


HIDDEN = np.random.default_rng(1).random((B, N, T, T)) < 0.6
MASKS: dict[str, Any] = {
    "none": None,
    "boolean": HIDDEN | np.eye(T, dtype=bool),
    "one for all heads": (HIDDEN | np.eye(T, dtype=bool))[:, :1],
    "keys alone": (np.arange(T) < np.array([[3], [7]]))[:, None, None],
    "0 and 1 as floats": (HIDDEN | np.eye(T, dtype=bool)).astype(np.float32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_nnx(num_kv_heads, mask):
    own, ours = layers(num_kv_heads)
    given = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    assert_close(ours(drawn(B, T, D), mask=given), own(drawn(B, T, D), mask=given))


def test_nnx_causal_is_flaxs():
    own, ours = layers()
    x, y = drawn(B, T, D), drawn(B, S, D)
    assert_close(ours(x, y, is_causal=True), own(x, y, is_causal=True))
    assert jnp.abs(ours(x, y, is_causal=True) - ours(x, y)).max() > 0.01


def test_nnx_sown_weights():
    own, ours = layers()
    sown = []
    for layer in (own, ours):
        _, intermediates = nnx.capture(layer, nnx.Intermediate)(drawn(B, T, D), sow_weights=True)
        sown.append(jax.tree.leaves(intermediates)[0])
    assert_close(sown[1], sown[0])
    assert sown[1].shape == (B, N, T, T)


@pytest.mark.parametrize("broadcast", [True, False])
def test_nnx_dropout_draws_flaxs_pattern(broadcast):
    own, ours = layers(dropout_rate=0.4, broadcast_dropout=broadcast, deterministic=False)
    assert_close(ours(drawn(B, T, D)), own(drawn(B, T, D)))
    assert jnp.abs(ours(drawn(B, T, D)) - ours(drawn(B, T, D), deterministic=True)).max() > 0.01


def test_nnx_decodes_with_its_own_cache():
    own, ours = layers(decode=True)
    x = drawn(B, T, D)
    for layer in (own, ours):
        layer.init_cache(x.shape)
    for step in range(T):
        assert_close(ours(x[:, step : step + 1]), own(x[:, step : step + 1]))


def test_nnx_gradients():
    own, ours = layers()
    loss = nnx.grad(lambda layer: (layer(drawn(B, T, D)) ** 2).sum())
    got, wanted = (jax.tree.leaves(loss(layer)) for layer in (ours, own))
    largest = max(float(jnp.abs(x).max()) for x in wanted)  # one scale: the key's bias has no gradient but roundings
    assert all(jnp.abs(a - b).max() <= 1e-6 * largest for a, b in zip(got, wanted, strict=True))


def test_linen_with_more_batch_axes():
    x = drawn(3, B, T, D)
    mask = linen.make_causal_mask(x[..., 0])
    own = linen.MultiHeadDotProductAttention(N, qkv_features=D)
    ours = linen.MultiHeadDotProductAttention(N, qkv_features=D, attention_fn=attention_fn)
    weights = own.init(jax.random.key(0), x)
    assert_close(ours.apply(weights, x, mask=mask), own.apply(weights, x, mask=mask))
    sown = [
        each.apply(weights, x, mask=mask, sow_weights=True, mutable="intermediates")[1]["intermediates"]
        for each in (own, ours)
    ]
    assert_close(sown[1]["attention_weights"][0], sown[0]["attention_weights"][0])


def test_a_bias_is_added_and_a_mask_is_truth():
    q, k, v = drawn(B, T, N, 4), drawn(B, S, N, 4, seed=1), drawn(B, S, N, 4, seed=2)
    bias, mask = (
        drawn(1, N, T, S),
        jnp.asarray(np.random.default_rng(3).random((B, 1, T, S)) < 0.7).at[..., 0].set(True),
    )
    assert_close(attention_fn(q, k, v, bias, mask), linen.dot_product_attention(q, k, v, bias, mask))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"precision": "bfloat16"}, "precision: expected None or 'highest', got 'bfloat16'"),
        (
            {"qk_attn_weights_einsum": jnp.einsum},
            "qk_attn_weights_einsum, attn_weights_value_einsum: ",
        ),
        ({"dropout_rate": 0.5}, "dropout_rng: expected a key where dropout_rate > 0 and deterministic=False, got None"),
    ],
)
def test_what_cannot_be_honoured_is_named(given, sentence):
    x = drawn(B, T, N, 4)
    with pytest.raises(ValueError, match=sentence):
        attention_fn(x, x, x, **given)

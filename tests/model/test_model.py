"""`Transformer`: every setting of `ModelConfig` in every backend, cached = whole, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from conformance.cases.compare import bound, error_of
from gqa_spec import ModelConfig
from gqa_spec.model_config import model_weight_shapes
from tests.helpers import new_model, to_backend, to_numpy
from tests.model.models import (
    BACKENDS,
    CONFIGS,
    LENGTHS,
    B,
    T,
    V,
    batch,
    extend,
    model,
    real,
    weights,
    whole,
)

pytestmark = pytest.mark.no_shape_checks


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("other", ["torch", "jax"])
def test_the_backends_agree(name: str, other: str) -> None:
    (result, states), (expected, expected_states) = whole(other, name), whole("numpy", name)
    assert result.shape == expected.shape
    assert len(states) == len(expected_states) == CONFIGS[name].num_layers + 1
    for got, wanted in zip([result, *states], [expected, *expected_states], strict=True):
        assert error_of(real(got), real(wanted)) <= bound("float64", 0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_row_is_what_it_is_alone(name: str) -> None:
    x, (result, _) = batch(CONFIGS[name]), whole("numpy", name)
    for row, length in enumerate(LENGTHS):
        alone = model("numpy", name)(x[row : row + 1, :length])[0]
        padded = result[row] if result.ndim == 2 else result[row, :length]
        np.testing.assert_allclose(padded, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gemma", "starcoder", "encoder", "pythia", "cohere", "qwen moe", "gpt-oss"])
def test_cached_is_whole(backend: str, name: str) -> None:
    """A prompt of unequal rows, then chunks of 2 and 1, rows that get nothing: past every window's edge."""
    config, transformer = CONFIGS[name], model(backend, name)
    x = batch(config)
    cache = transformer.init_cache(B, 2 * T)
    steps = [(3, [3, 1, 2]), (3, [2, 0, 2]), (1, [1, 1, 0]), (1, [1, 0, 1])]
    done = np.zeros(B, int)
    got: list[list[np.ndarray]] = [[] for _ in range(B)]
    for width, of_rows in steps:
        counts = np.array(of_rows)
        chunk = np.zeros((B, width, *x.shape[2:]), x.dtype)
        for row, count in enumerate(counts):
            chunk[row, :count] = x[row, done[row] : done[row] + count]
        result, cache = extend(backend, transformer, chunk, cache, counts)
        for row, count in enumerate(counts):
            got[row] += [result[row]] if result.ndim == 2 and count else list(result[row, :count]) if count else []
        done += counts
    assert done.tolist() == [7, 2, 5]
    expected, _ = whole("numpy", name)
    for row, length in enumerate(LENGTHS):
        if expected.ndim == 2:
            np.testing.assert_allclose(got[row][-1], expected[row], rtol=1e-9, atol=1e-11)
        else:
            np.testing.assert_allclose(np.stack(got[row]), expected[row, :length], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("other", ["torch", "jax"])
def test_each_layer_goes_by_the_length_of_its_own_cache(other: str) -> None:
    """Layers share what a step needs, but only where their caches hold equally much."""

    def mixed(backend: str) -> np.ndarray:
        transformer, x = model(backend, "gemma"), batch(CONFIGS["gemma"])
        held = []
        for count in (2, 4):
            start = transformer.init_cache(B, 2 * T)
            _, longer = extend(backend, transformer, x[:, :count], start, np.full(B, count))
            held.append(longer)
        result, _ = extend(backend, transformer, x[:, 4:6], (held[0][0], held[1][1]), np.full(B, 2))
        return result

    np.testing.assert_allclose(mixed(other), mixed("numpy"), rtol=1e-9, atol=1e-11)


def test_last_gives_each_rows_last_real_logits(backend: str) -> None:
    config, transformer = CONFIGS["gemma"], model(backend, "gemma")
    x, lengths = to_backend(backend, batch(config)), to_backend(backend, np.array([7, 0, 5]))
    result, _ = transformer.extend(x, transformer.init_cache(B, T), lengths=lengths, last=True)
    expected, _ = whole("numpy", "gemma")
    np.testing.assert_allclose(to_numpy(result)[[0, 2]], expected[[0, 2], [6, 4]], rtol=1e-9, atol=1e-11)
    assert (to_numpy(result)[1] == 0).all()


def test_caches_roll_where_that_saves_memory(backend: str) -> None:
    transformer = model(backend, "gemma")
    assert [c.rolling for c in transformer.init_cache(B, 4)] == [True, False]
    assert [c.rolling for c in transformer.init_cache(B, 3)] == [False, False]
    assert transformer.init_cache(B, 4)[0].capacity == 3


def test_a_full_cache_raises_before_anything_is_written(backend: str) -> None:
    transformer, x = model(backend, "gemma"), to_backend(backend, batch(CONFIGS["gemma"]))
    cache = transformer.init_cache(B, T)
    _, cache = transformer.extend(x, cache, lengths=to_backend(backend, np.array([7, 2, 5])))
    with pytest.raises(ValueError, match=r"capacity = 7, got length 7 \+ chunk 1 in row 0"):
        transformer.extend(x[:, :1], cache)
    again, _ = transformer.extend(x[:, :1], cache, lengths=to_backend(backend, np.array([0, 1, 1])))
    assert np.isfinite(to_numpy(again)).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_count(backend: str, name: str) -> None:
    config = CONFIGS[name]
    exported = model(backend, name).export_weights()
    assert {key: x.shape for key, x in exported.items()} == model_weight_shapes(config)
    assert all((x == weights(config)[key]).all() for key, x in exported.items())
    assert config.param_count == _parameters(backend, model(backend, name))


def _parameters(backend: str, transformer: Any) -> int:
    """As the framework counts them."""
    if backend == "torch":
        return sum(p.numel() for p in transformer.parameters())
    if backend == "jax":
        import jax
        from flax import nnx

        return sum(x.size for x in jax.tree.leaves(nnx.state(transformer, nnx.Param)))
    owners = [transformer, *transformer.blocks, *(block.attention for block in transformer.blocks)]
    return sum(x.size for owner in owners for x in owner.parameters.values())


def test_state_dict_keys_are_the_canonical_names() -> None:
    for name, config in CONFIGS.items():
        assert set(model("torch", name).state_dict()) == set(model_weight_shapes(config))


def test_the_recommended_encoder() -> None:
    """287 * 256 + 256; per layer 2 norms, q and o 256 * 256 + 256, k and v 64 * 256 + 64, up and down; a last norm."""
    layer = 2 * 512 + 2 * (256 * 256 + 256) + 2 * (64 * 256 + 64) + (1024 * 256 + 1024) + (256 * 1024 + 256)
    config = ModelConfig.encoder()
    assert config.param_count == 287 * 256 + 256 + 4 * layer + 512
    assert config.output_size == 256
    result = new_model("numpy", config)(np.random.default_rng(0).normal(size=(2, 61, 287)))
    assert result.shape == (2, 256)


def test_the_encoder_is_torchs_own() -> None:
    """With as many KV heads as query heads, `ModelConfig.encoder` is `nn.TransformerEncoder`, norm first."""
    import torch

    config = ModelConfig.encoder(embed_dim=11, hidden_size=24, num_heads=6, num_kv_heads=6, num_layers=2, window_size=3)
    mine = new_model("numpy", config).load_weights(weights(config))
    w = {name: torch.from_numpy(x) for name, x in weights(config).items()}
    layer = torch.nn.TransformerEncoderLayer(
        24, 6, 96, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    last = torch.nn.LayerNorm(24, dtype=torch.float64)
    theirs = torch.nn.TransformerEncoder(layer, 2, norm=last, enable_nested_tensor=False).eval()
    state = {"norm.weight": w["norm.weight"], "norm.bias": w["norm.bias"]}
    for i in range(2):
        block, attn = f"blocks.{i}.", f"blocks.{i}.attention."
        for field in ("weight", "bias"):
            projections = torch.cat([w[f"{attn}{x}_proj.{field}"] for x in "qkv"])
            state |= {
                f"layers.{i}.self_attn.in_proj_{field}": projections,
                f"layers.{i}.self_attn.out_proj.{field}": w[f"{attn}o_proj.{field}"],
                f"layers.{i}.norm1.{field}": w[f"{block}attention_norm.{field}"],
                f"layers.{i}.norm2.{field}": w[f"{block}feed_forward_norm.{field}"],
                f"layers.{i}.linear1.{field}": w[f"{block}feed_forward.up.{field}"],
                f"layers.{i}.linear2.{field}": w[f"{block}feed_forward.down.{field}"],
            }
    theirs.load_state_dict(state)
    x = batch(config)
    hidden = torch.from_numpy(x) @ w["embed.weight"].T + w["embed.bias"]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    with torch.no_grad():
        expected = theirs(hidden, mask=(distance < 0) | (distance >= 3))[:, -1]
    assert error_of(mine(x), expected.numpy()) <= bound("float64", 0.0)


@pytest.mark.parametrize("name", ["gemma", "starcoder"])
@pytest.mark.parametrize("other", ["torch", "jax"])
def test_bfloat16(name: str, other: str) -> None:
    import ml_dtypes

    config = CONFIGS[name]
    rounded = {key: x.astype(ml_dtypes.bfloat16) for key, x in weights(config).items()}
    x = batch(config)
    oracle = new_model("numpy", config).load_weights(rounded)(x)
    reference = new_model("numpy", config, "bfloat16").load_weights(rounded)(x)
    got = new_model(other, config, "bfloat16").load_weights(rounded)(to_backend(other, x))
    assert str(got.dtype).endswith("bfloat16")
    got = got.detach().float() if other == "torch" else got.astype("float32")
    assert error_of(np.asarray(got), oracle) <= bound("bfloat16", error_of(reference, oracle))


@pytest.mark.parametrize("name", ["olmo", "encoder"])
def test_gradients_agree(name: str) -> None:
    """Two frameworks' own derivatives of the same function."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    x = batch(CONFIGS[name])
    theirs = model("torch", name)
    theirs.zero_grad()
    theirs(to_backend("torch", x), lengths=to_backend("torch", LENGTHS)).square().mean().backward()
    graph, state = nnx.split(model("jax", name))

    @jax.jit
    def gradient(state: Any) -> Any:
        def loss(state: Any) -> Any:
            return jnp.square(nnx.merge(graph, state)(jnp.asarray(x), lengths=jnp.asarray(LENGTHS))).mean()

        return jax.grad(loss, allow_int=True)(state)

    # The gradients take the weights' places, to be exported under their names.
    gradients = nnx.merge(graph, gradient(state)).export_weights()
    for key, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[key], parameter.grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=key)


def test_dropout_acts_in_training_alone(backend: str) -> None:
    import dataclasses

    config = dataclasses.replace(CONFIGS["olmo"], dropout=0.4)
    x = to_backend(backend, batch(config))
    transformer = _trainable(backend, config).load_weights(weights(CONFIGS["olmo"]))
    expected, _ = whole("numpy", "olmo")
    once, twice = (to_numpy(transformer.train()(x)) for _ in range(2))
    assert (once != twice).any()
    np.testing.assert_allclose(to_numpy(transformer.eval()(x))[0], expected[0], rtol=1e-9, atol=1e-11)


def _trainable(backend: str, config: ModelConfig) -> Any:
    if backend != "jax":
        return new_model(backend, config)
    from flax import nnx

    from gqa_jax import Transformer

    return Transformer(config, rngs=nnx.Rngs(0), param_dtype="float64")


def test_initial_values(backend: str) -> None:
    transformer = _trainable(backend, CONFIGS["starcoder"])
    for name, x in transformer.export_weights().items():
        if name.endswith("norm.weight"):
            assert (x == 1).all(), name
        elif name.endswith((".bias", "sinks")):
            assert (x == 0).all(), name
        else:
            bound_ = x.shape[1] ** -0.5
            assert np.abs(x).max() <= bound_, name
            assert x.std() == pytest.approx(bound_ / 3**0.5, rel=0.2), name


def test_vectors_in_the_wrong_dtype_and_tokens_out_of_range(backend: str) -> None:
    tokens, vectors = model(backend, "gemma"), model(backend, "states of vectors")
    x = batch(CONFIGS["gemma"])
    refused = [
        (tokens, x.astype(np.float64), TypeError, "tokens: expected an integer dtype, got float64"),
        (tokens, x[0], ValueError, "tokens: expected 2 axes (B, T), got (7,)"),
        (tokens, x[:, :0], ValueError, "tokens: expected at least one token, T >= 1, got (3, 0)"),
        (tokens, np.where(x == x[1, 1], V, x), ValueError, "tokens: expected 0 <= token < V = 37, got 37"),
        (tokens, np.where(x == x[1, 1], -1, x), ValueError, "tokens: expected 0 <= token < V = 37, got -1"),
        (
            vectors,
            batch(CONFIGS["states of vectors"]).astype(np.float32),
            TypeError,
            "vectors: expected the model's dtype float64, got float32: "
            "cast the input to float64, or make the model with dtype float32",
        ),
        (
            vectors,
            np.zeros((2, 3, 5)),
            ValueError,
            "vectors: expected (B, T, I) with I = 11, got (2, 3, 5): axis I is 5",
        ),
    ]
    for transformer, bad, kind, sentence in refused:
        with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
            transformer(to_backend(backend, bad))


def test_a_bidirectional_model_has_no_cache(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^cache: expected a layer with causal=True, got causal=False$"):
        model(backend, "bidirectional").init_cache(B, T)


def test_lengths_and_caches_are_checked(backend: str) -> None:
    transformer, x = model(backend, "gemma"), to_backend(backend, batch(CONFIGS["gemma"]))
    with pytest.raises(ValueError, match=r"^lengths: expected 0 <= length <= T = 7, got 8 in row 1$"):
        transformer(x, lengths=to_backend(backend, np.array([7, 8, 1])))
    with pytest.raises(ValueError, match=r"^cache: expected a tuple of one cache for each of 2 layers, got 1 of them$"):
        transformer.extend(x, transformer.init_cache(B, T)[:1])


def test_loading_is_all_or_nothing(backend: str) -> None:
    transformer = new_model(backend, CONFIGS["olmo"]).load_weights(weights(CONFIGS["olmo"]))
    bad = dict(weights(CONFIGS["olmo"])) | {"norm.weight": np.zeros(5), "extra": np.zeros(2)}
    del bad["blocks.1.attention.q_proj.weight"]
    with pytest.raises(
        ValueError, match=r"missing blocks.1.attention.q_proj.weight; unexpected extra; norm.weight exp"
    ):
        transformer.load_weights(bad)
    exported = transformer.export_weights()
    assert all((x == weights(CONFIGS["olmo"])[name]).all() for name, x in exported.items())


def test_traced_tokens_out_of_range_are_nan() -> None:
    from flax import nnx

    x = to_backend("jax", np.array([[1, 2, V], [1, 2, 3]]))
    result = to_numpy(nnx.jit(lambda m, x: m(x))(model("jax", "olmo"), x))
    assert np.isnan(result[0, 2]).all()
    assert np.isfinite(result[1]).all()


def test_torch_compiles_the_whole_model() -> None:
    import torch

    transformer, x = model("torch", "gemma"), to_backend("torch", batch(CONFIGS["gemma"]))
    compiled, lengths = torch.compile(transformer, fullgraph=True, backend="eager"), to_backend("torch", LENGTHS)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, lengths=lengths), transformer(x, lengths=lengths))

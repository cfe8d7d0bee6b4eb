"""Caches cannot lie: any split of a sequence into chunks gives what one whole pass gives (SPEC 13)."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.cases.compare import error_of
from conformance.targets import BACKENDS, Backend
from gqa_spec import AttentionConfig, DynamicScaling, LongropeScaling, RopeConfig

SIZES = {"embed_dim": 13, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "v_head_dim": 5, "causal": True}
LONGROPE = LongropeScaling(
    short_factor=(1.0,) * 4, long_factor=(2.0, 3.0, 5.0, 7.0), original_max_position_embeddings=8, factor=4.0
)
CONFIGS = {
    "plain": {},
    "biases": {"qkv_bias": True, "out_bias": True},
    "RoPE": {"rope": RopeConfig()},
    "RoPE and QK-norm": {"rope": RopeConfig(pairing="interleaved"), "qk_norm": "rms"},
    "dynamic NTK": {"rope": RopeConfig(scaling=DynamicScaling(factor=2.0, original_max_position_embeddings=8))},
    "LongRoPE": {"rope": RopeConfig(scaling=LONGROPE)},
    "window": {"window": 4, "rope": RopeConfig()},
    "window of one": {"window": 1},
    "chunk": {"chunk": 5},
    "window and chunk": {"window": 4, "chunk": 5, "rope": RopeConfig()},
    "softcap and sinks": {"softcap": 0.9, "sinks": True, "window": 3},
}
LENGTH, CAPACITY = 17, 23


def layer_of(backend, name, dtype="float64"):
    config = AttentionConfig(**SIZES, **CONFIGS[name])
    rng = np.random.default_rng(0)
    from gqa_weights import weight_shapes

    layer = backend.layer(config, dtype)
    layer.load({n: rng.normal(size=shape).astype(dtype) for n, shape in weight_shapes(config).items()})
    return layer


def tokens(backend, dtype="float64", rows=2, length=LENGTH):
    x = np.random.default_rng(1).normal(size=(rows, length, SIZES["embed_dim"]))
    return backend.framework.to(x.astype(dtype))


def whole(layer, x):
    output, _ = layer.framework.call(layer.module, x, rope_length=CAPACITY, need_weights=True)
    return layer.framework.back(output)


def extend_of(layer):
    """The layer's extend, in JAX under nnx.jit, as users call it."""
    if layer.framework.name != "jax":
        return layer.module.extend
    from flax import nnx

    jitted = nnx.jit(lambda module, x, cache, lengths=None: module.extend(x, cache, lengths=lengths))
    return lambda x, cache, **keywords: jitted(layer.module, x, cache, **keywords)


def extended(layer, x, splits, **kind):
    """The outputs of extending by chunks of these sizes, joined."""
    cache, extend = layer.module.init_cache(x.shape[0], CAPACITY, **kind), extend_of(layer)
    outputs, start = [], 0
    for size in splits:
        output, cache = extend(x[:, start : start + size], cache)
        outputs.append(layer.framework.back(output))
        start += size
    return np.concatenate(outputs, axis=1)


def kinds(name):
    return [{}, {"rolling": True}] if "window" in CONFIGS[name] else [{}]


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_pass_is_chunks_is_token_by_token(backend, name):
    layer, x = layer_of(backend, name), tokens(backend)
    expected = whole(layer, x)
    for kind in kinds(name):
        for splits in ([LENGTH], [6, 5, 6], [1] * LENGTH):
            assert error_of(extended(layer, x, splits, **kind), expected) <= 1e-12, (kind, splits)


@pytest.mark.parametrize("backend_name", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["RoPE", "window and chunk", "softcap and sinks"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_any_split_gives_the_whole_pass(backend_name, name, sizes):
    backend = Backend(backend_name)
    splits, left = [], LENGTH
    for size in sizes:
        splits.append(min(size, left))
        left -= splits[-1]
    layer, x = layer_of(backend, name), tokens(backend)
    for kind in kinds(name):
        assert error_of(extended(layer, x, [*splits, left], **kind), whole(layer, x)) <= 1e-12


@settings(max_examples=6, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 2, 6]), min_size=1, max_size=5))
def test_any_split_gives_the_whole_pass_in_jax(sizes):
    """Few chunk sizes, because each is a program to compile."""
    backend = Backend("jax")
    splits, left = [], LENGTH
    for size in sizes:
        splits += [size] * (left >= size)
        left = LENGTH - sum(splits)
    layer, x = layer_of(backend, "window and chunk"), tokens(backend)
    for kind in kinds("window and chunk"):
        assert error_of(extended(layer, x, [*splits, *[1] * left], **kind), whole(layer, x)) <= 1e-12


@pytest.mark.parametrize("kind", [{}, {"rolling": True}], ids=["static", "rolling"])
@pytest.mark.parametrize("name", ["window", "window and chunk"])
def test_rows_of_different_lengths(backend, name, kind):
    """Right-padded chunks, the padding NaN: each row is what it would be alone, and the padding gives 0."""
    layer, rows = layer_of(backend, name), 3
    to, back = backend.framework.to, backend.framework.back
    x = back(tokens(backend, rows=rows))
    chunks = np.array([[5, 0, 2], [1, 6, 6], [0, 3, 6]])  # tokens of each row in each of three chunks of 6
    cache, extend = layer.module.init_cache(rows, CAPACITY, **kind), extend_of(layer)
    seen = np.zeros(rows, int)
    got = [[] for _ in range(rows)]
    for counts in chunks:
        padded = np.full((rows, 6, x.shape[2]), np.nan)
        for row, count in enumerate(counts):
            padded[row, :count] = x[row, seen[row] : seen[row] + count]
        output, cache = extend(to(padded), cache, lengths=to(counts))
        for row, count in enumerate(counts):
            assert not back(output)[row, count:].any()
            got[row].append(back(output)[row, :count])
        seen += counts
        assert back(cache.length).tolist() == seen.tolist()
    expected = whole(layer, to(x))
    for row in range(rows):
        assert error_of(np.concatenate(got[row]), expected[row, : seen[row]]) <= 1e-12


def test_slots_past_the_length_are_zero(backend):
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    cache = layer.module.init_cache(2, CAPACITY)
    lengths = backend.framework.to(np.array([5, 2]))
    _, cache = layer.module.extend(x[:, :6], cache, lengths=lengths)
    for held in (cache.keys, cache.values):
        held = backend.framework.back(held)
        assert held.shape[2] == CAPACITY
        assert held[0, :, :5].all()
        assert held[1, :, :2].all()
        assert not held[0, :, 5:].any()
        assert not held[1, :, 2:].any()


def test_a_rolling_cache_holds_the_window(backend):
    layer, x = layer_of(backend, "window"), tokens(backend)
    cache = layer.module.init_cache(2, CAPACITY, rolling=True)
    assert cache.keys.shape[2] == CONFIGS["window"]["window"]
    for _ in range(4):  # 68 tokens through 23 slots: a rolling cache never overflows
        _, cache = extend_of(layer)(x, cache)
    assert cache.keys.shape[2] == CONFIGS["window"]["window"]
    assert backend.framework.back(cache.length).tolist() == [68, 68]


def test_a_prefix_can_be_forked(backend):
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    back = backend.framework.back
    _, prefix = layer.module.extend(x[:, :6], layer.module.init_cache(2, CAPACITY))
    fork = prefix.clone()
    first, _ = layer.module.extend(x[:, 6:9], prefix)
    other, _ = layer.module.extend(-x[:, 6:9], fork.clone())
    again, _ = layer.module.extend(x[:, 6:9], fork)
    np.testing.assert_array_equal(back(first), back(again))
    assert error_of(back(other), back(first)) > 0.01


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_consumed_cache_raises(name):
    backend = Backend(name)
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    cache = layer.module.init_cache(2, CAPACITY)
    layer.module.extend(x[:, :2], cache)
    with pytest.raises(ValueError, match=r"cache: expected one that was not extended yet, .* clone\(\) it first"):
        layer.module.extend(x[:, :2], cache)
    with pytest.raises(ValueError, match=r"clone\(\) it first"):
        cache.clone()


def test_a_cache_of_jax_can_be_extended_again():
    backend = Backend("jax")
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    cache = layer.module.init_cache(2, CAPACITY)
    first, _ = layer.module.extend(x[:, :2], cache)
    again, _ = layer.module.extend(x[:, :2], cache)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))


@pytest.mark.no_shape_checks
def test_overflow_raises_and_names_the_numbers(backend):
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    to = backend.framework.to
    _, cache = layer.module.extend(x[:, :6], layer.module.init_cache(2, 8), lengths=to(np.array([2, 6])))
    text = r"cache: expected length \+ chunk <= capacity = 8, got length 6 \+ chunk 3 in row 1"
    with pytest.raises(ValueError, match=text):
        layer.module.extend(x[:, :3], cache)
    layer.module.extend(x[:, :3], cache, lengths=to(np.array([3, 2])))  # nothing was written


def test_overflow_under_jit_is_nan_in_that_row_from_then_on():
    from flax import nnx

    backend = Backend("jax")
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    extend = nnx.jit(lambda module, x, cache, lengths: module.extend(x, cache, lengths=lengths))
    to, back = backend.framework.to, backend.framework.back
    cache = layer.module.init_cache(2, 8)
    outputs = []
    for start, lengths in ((0, [3, 1]), (3, [3, 1]), (6, [3, 1]), (9, [0, 1])):
        output, cache = extend(layer.module, x[:, start : start + 3], cache, to(np.array(lengths)))
        outputs.append(back(output))
    assert [np.isnan(o[0]).all() for o in outputs] == [False, False, True, True]
    assert not any(np.isnan(o[1]).any() for o in outputs)


@pytest.mark.parametrize("donate", [False, True])
def test_extend_compiles_once_for_a_chunk_size(donate):
    import jax
    from flax import nnx

    backend = Backend("jax")
    layer, x = layer_of(backend, "window"), tokens(backend)
    graph, state = nnx.split(layer.module)
    traced = []

    def extend(state, x, cache):
        traced.append(x.shape)
        return nnx.merge(graph, state).extend(x, cache)

    step = jax.jit(extend, donate_argnames=("cache",) if donate else ())
    cache = layer.module.init_cache(2, CAPACITY)
    outputs = []
    for i in range(LENGTH):
        output, cache = step(state, x[:, i : i + 1], cache)
        outputs.append(np.asarray(output))
    assert len(traced) == 1
    assert error_of(np.concatenate(outputs, 1), whole(layer, x)) <= 1e-12


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_narrower_cache(backend, dtype):
    """A float64 layer on a cache of another dtype: what is stored is rounded, what is computed is not."""
    layer, x = layer_of(backend, "RoPE"), tokens(backend)
    kind = backend.framework.to(np.zeros(1, "float32")).dtype
    narrow = {"float32": kind, **{d: _dtype(backend, d) for d in ("bfloat16", "float16")}}[dtype]
    got = extended(layer, x, [5, 1, 1, 10], dtype=narrow)
    assert got.dtype == np.float64
    assert 1e-9 < error_of(got, whole(layer, x)) < {"float32": 1e-6, "float16": 1e-2, "bfloat16": 1e-1}[dtype]


def _dtype(backend, name):
    if backend.name == "torch":
        import torch

        return getattr(torch, name)
    import ml_dtypes

    return getattr(ml_dtypes, name) if name == "bfloat16" else np.dtype(name)


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("settings", "call", "kind", "text"),
    [
        ({}, {"rolling": True}, ValueError, "rolling: expected a window to roll over, got window=None"),
        (
            {"causal": False},
            {},
            ValueError,
            "cache: expected a layer with causal=True, got causal=False",
        ),
        (
            {"kv_dim": 7},
            {},
            ValueError,
            "cache: expected self-attention, E = D = 13, got E = 7",
        ),
        ({}, {"max_length": 0}, ValueError, "max_length: expected max_length >= 1, got 0"),
        ({}, {"batch_size": 1.5}, TypeError, "batch_size: expected an integer, got 1.5"),
    ],
)
def test_the_same_sentence_in_every_backend(settings, call, kind, text):
    for name in BACKENDS:
        backend = Backend(name)
        module = backend.layer(AttentionConfig(**{**SIZES, **settings}), "float64").module
        with pytest.raises(kind) as caught:
            module.init_cache(**{"batch_size": 2, "max_length": 5, **call})
        assert str(caught.value) == text


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("x", "lengths", "kind", "text"),
    [
        ((3, 4, 13), None, ValueError, "cache.keys: expected (B, K, C, H) with B = 3, K = 2, H = 8"),
        ((2, 4, 12), None, ValueError, "x: expected (B, T, D) with D = 13, got (2, 4, 12): axis D is 12"),
        ((2, 4, 13), np.array([1, 5]), ValueError, "lengths: expected 0 <= length <= T = 4, got 5 in row 1"),
        ((2, 4, 13), np.array([1, -1]), ValueError, "lengths: expected 0 <= length <= T = 4, got -1 in row 1"),
        ((2, 4, 13), np.array([1]), ValueError, "lengths: expected (B,) with B = 2, got (1,): axis B is 1"),
        ((2, 4, 13), np.array([1.0, 2.0]), TypeError, "lengths: expected an integer dtype, got float64"),
    ],
)
def test_what_extend_is_given_is_checked(x, lengths, kind, text):
    for name in BACKENDS:
        backend = Backend(name)
        module = layer_of(backend, "plain").module
        to = backend.framework.to
        with pytest.raises(kind) as caught:
            module.extend(to(np.zeros(x)), module.init_cache(2, 9), lengths=None if lengths is None else to(lengths))
        assert str(caught.value).startswith(text)

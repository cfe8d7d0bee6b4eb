"""gqa_jax in the transformations, meshes and arrays of JAX: what breaks in many modules of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gqa_jax
import gqa_jax.attention
import gqa_jax.fast
from conformance.cases.compare import error_of
from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.settings import KernelSettings

pytestmark = pytest.mark.no_shape_checks
X = np.random.default_rng(0).normal(size=(2, 7, 24))
TOKENS = np.arange(12).reshape(2, 6)
LENGTHS = np.array([3, 6])


@functools.cache
def layer(dropout=0.0):
    return gqa_jax.GroupedQueryAttention(
        24,
        6,
        2,
        dropout,
        causal=True,
        rope=RopeConfig(),
        qkv_bias=True,
        out_bias=True,
        qk_norm="rms",
        sinks=True,
        window=5,
        softcap=3.0,
        rngs=nnx.Rngs(0),
        param_dtype=jnp.float64,
    )


@functools.cache
def model():
    attention = AttentionConfig(embed_dim=16, num_heads=4, num_kv_heads=2, causal=True, rope=RopeConfig(), window=4)
    config = ModelConfig(vocab_size=30, attention=(attention,) * 2, feed_forward_size=20, max_length=64)
    return gqa_jax.Transformer(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64).eval()


@pytest.fixture(autouse=True)
def made():
    """Both are made outside of any trace, whichever test is the first."""
    layer(), model()


# --- arrays of NumPy -------------------------------------------------------------------------------------------------


def test_numpy_arrays_are_arguments():
    mask = np.ones((7, 7), bool)
    expected = layer()(jnp.asarray(X), mask=jnp.asarray(mask), positions=jnp.arange(7))[0]
    np.testing.assert_array_equal(layer()(X, mask=mask, positions=np.arange(7))[0], expected)
    _, cache = layer().extend(X, layer().init_cache(2, 9), lengths=np.array([7, 2]))
    assert cache.length.tolist() == [7, 2]
    stages = gqa_jax.attention_stages(*(np.ones((1, 2, 3, 4)),) * 3, offset=np.array([0]), causal=True)
    assert isinstance(gqa_jax.merge([np.asarray(stages["context"])], [np.asarray(stages["logsumexp"])])[0], jax.Array)
    expected = model()(jnp.asarray(TOKENS), lengths=jnp.asarray(LENGTHS))
    np.testing.assert_array_equal(model()(TOKENS, lengths=LENGTHS), expected)
    assert isinstance(gqa_jax.masks.combine(np.ones((3, 3), bool), np.ones((3, 3), bool)), jax.Array)


# --- values that are constants of a traced function ------------------------------------------------------------------

CONSTANTS = {
    "jit": lambda f: jax.jit(f)(),
    "scan": lambda f: jax.lax.scan(lambda carry, _: (carry, f()), 0, None, length=2)[1][0],
    "checkpoint": lambda f: jax.checkpoint(lambda scale: f() * scale)(1.0),
    "eval_shape": lambda f: jax.eval_shape(f),
}


@pytest.mark.parametrize("transform", CONSTANTS)
def test_concrete_tokens_in_a_traced_function(transform):
    tokens, lengths = jnp.asarray(TOKENS), jnp.asarray(LENGTHS)

    def whole():
        return model()(tokens, lengths=lengths)

    def extended():
        return model().extend(tokens, model().init_cache(2, 8), lengths=lengths, last=True)[0]

    for function in (whole, extended):
        got = CONSTANTS[transform](function)
        assert got.shape == function().shape
        if transform != "eval_shape":
            assert error_of(np.asarray(got), np.asarray(function())) <= 1e-12


def test_concrete_values_are_still_checked_in_a_traced_function():
    tokens = jnp.full((1, 2), 30)
    with pytest.raises(ValueError, match="tokens: expected 0 <= token < V = 30, got 30"):
        jax.jit(lambda: model()(tokens))()


# --- strict settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [True, False])
def test_rank_promotion_may_be_forbidden(need_weights):
    mask = np.ones((7, 7), bool)
    expected = layer()(X, mask=mask, need_weights=need_weights)[0]
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(layer()(X, mask=mask, need_weights=need_weights)[0], expected)
        layer()(X, mask=np.zeros((7, 7)), offset=np.array([0, 1]), need_weights=need_weights)
        for rolling in (False, True):
            _, cache = layer().extend(X, layer().init_cache(2, 9, rolling=rolling), lengths=np.array([7, 3]))
            cache.reset([0]).repeat(2)
        model()(TOKENS, lengths=LENGTHS, segments=np.zeros((2, 6), int), positions=np.arange(6))
        stages = layer().trace(X)
        gqa_jax.merge([stages["context"]] * 2, [stages["logsumexp"]] * 2)


def test_rank_promotion_may_be_forbidden_in_blocks():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(2, n, 16, 8))) for n in (6, 2))
    with jax.numpy_rank_promotion("raise"):
        gqa_jax.fast.blocked_attention(
            query, key, key, None, KernelSettings(causal=True, window=5), block_rows=6, block_keys=4
        )


@pytest.mark.parametrize("need_weights", [True, False])
def test_export_with_symbolic_sizes(need_weights):
    """One program for every batch and every length."""
    from jax import export

    b, t = export.symbolic_shape("b, t")
    shape = jax.ShapeDtypeStruct((b, t, 24), jnp.float64)
    program = export.export(jax.jit(lambda x: layer()(x, need_weights=need_weights)[0]))(shape)
    for x in (X, X[:1, :3]):
        assert error_of(np.asarray(program.call(jnp.asarray(x))), np.asarray(layer()(x)[0])) <= 1e-12
    whole = export.export(jax.jit(model()))(jax.ShapeDtypeStruct((b, t), jnp.int64))
    assert error_of(np.asarray(whole.call(jnp.asarray(TOKENS))), np.asarray(model()(TOKENS))) <= 1e-12


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("keywords", [{"causal": True, "window": 3}, {"softcap": 2.0}], ids=str)
def test_export_of_the_kernel_with_symbolic_sizes(keywords, need_weights):
    from jax import export

    def attend(query, key, mask, need_weights=need_weights):
        return gqa_jax.grouped_query_attention(query, key, key, mask, **keywords, need_weights=need_weights)[0]

    b, t, s = export.symbolic_shape("b, t, s")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((b, 6, t, 4), (b, 2, s, 4), (t, s))]
    program = export.export(jax.jit(attend))(*shapes)
    rng = np.random.default_rng(0)
    for B, T, S in ((2, 5, 7), (1, 1, 3), (1, 9, 9)):
        inputs = [jnp.asarray(rng.normal(size=shape)) for shape in ((B, 6, T, 4), (B, 2, S, 4), (T, S))]
        expected = attend(*inputs, need_weights=True)
        assert error_of(np.asarray(program.call(*inputs)), np.asarray(expected)) <= 1e-12


# --- meshes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(gqa_jax.attention, "PACKED_ROWS", 0)
    monkeypatch.setattr(gqa_jax.attention, "PACKED_WEIGHTS", 0)
    monkeypatch.setattr(gqa_jax.fast, "BLOCK_ROWS", 6)
    monkeypatch.setattr(gqa_jax.fast, "BLOCK_KEYS", 4)


@pytest.mark.parametrize("keywords", [{"causal": True}, {"causal": True, "window": 5}, {}], ids=str)
def test_blocks_in_shard_map(blocks, keywords):
    """Its check of what varies over the mesh is on: the loops' state varies as the queries do, forward and backward."""
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(2, n, 16, 8))) for n in (6, 2))

    def attend(query, key, value, need_weights=False):
        return gqa_jax.grouped_query_attention(query, key, value, **keywords, need_weights=need_weights)[0]

    spec = P("data", "tensor")
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)

    def loss(function):
        return jax.grad(lambda *inputs: (function(*inputs) ** 2).sum(), argnums=(0, 1, 2))

    expected = attend(query, key, key, need_weights=True)
    assert error_of(np.asarray(jax.jit(sharded)(query, key, key)), np.asarray(expected)) <= 1e-12
    whole = loss(functools.partial(attend, need_weights=True))(query, key, key)
    for got, gradient in zip(jax.jit(loss(sharded))(query, key, key), whole, strict=True):
        assert error_of(np.asarray(got), np.asarray(gradient)) <= 1e-11


def test_explicit_axes_are_refused_in_one_sentence():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    place = NamedSharding(mesh, P("data"))
    sentence = r"expected an array on a mesh with axes of AxisType.Auto, got one sharded over the Explicit axes data"
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=f"query: {sentence}"):
            layer()(jax.device_put(jnp.asarray(X), place))
        with pytest.raises(ValueError, match=f"tokens: {sentence}"):
            model()(jax.device_put(jnp.asarray(TOKENS), place))


# --- surgery ---------------------------------------------------------------------------------------------------------


def part_of(whole, queries, keys):
    """The layer with some of its heads alone."""
    part = gqa_jax.GroupedQueryAttention.from_config(whole.config, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    nnx.update(part, nnx.state(whole))
    for name, heads in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        projection = getattr(part, name)
        columns = np.concatenate([np.arange(4) + 4 * head for head in heads])
        projection.kernel.set_value(projection.kernel[...][:, columns])
        projection.bias.set_value(projection.bias[...][columns])
    part.o_proj.kernel.set_value(part.o_proj.kernel[...][np.concatenate([np.arange(4) + 4 * head for head in queries])])
    part.sinks.set_value(part.sinks[...][np.array(queries)])
    return part


def test_a_part_of_the_heads_computes_its_part():
    whole = layer()
    parts = [part_of(whole, range(3 * rank, 3 * rank + 3), [rank]) for rank in (0, 1)]
    outputs = [np.asarray(part(X)[0]) - np.asarray(whole.o_proj.bias[...]) for part in parts]
    assert error_of(sum(outputs) + np.asarray(whole.o_proj.bias[...]), np.asarray(whole(X)[0])) <= 1e-12
    assert parts[0](X)[1].shape == (2, 3, 7, 7)


def test_a_part_of_the_heads_takes_masks_of_its_own():
    whole, mask = layer(), np.random.default_rng(0).normal(size=(2, 6, 7, 7))
    expected, bias = np.asarray(whole(X, mask=mask)[0]), np.asarray(whole.o_proj.bias[...])
    parts = [part_of(whole, range(3 * rank, 3 * rank + 3), [rank]) for rank in (0, 1)]
    for need_weights in (True, False):
        total = bias
        for part, own in zip(parts, np.split(mask, 2, axis=1), strict=True):
            total = total + np.asarray(part(X, mask=own, need_weights=need_weights)[0]) - bias
        assert error_of(total, expected) <= 1e-12
    with pytest.raises(ValueError, match=r"mask: .* = \(2, 3, 7, 7\), got \(2, 6, 7, 7\)"):
        parts[0](X, mask=mask)


def test_a_part_of_the_heads_caches_its_own():
    part = part_of(layer(), range(3), [0])
    cache = part.init_cache(2, 7)
    assert cache.keys.shape == (2, 1, 7, 4)
    got = []
    for x in (X[:, :4], X[:, 4:7]):
        output, cache = part.extend(x, cache)
        got.append(np.asarray(output))
    assert error_of(np.concatenate(got, axis=1), np.asarray(part(X[:, :7])[0])) <= 1e-12


def test_widths_that_disagree_raise():
    with pytest.raises(ValueError, match="q_proj: expected G = 3 query heads for each of 2 KV heads, got 3"):
        part_of(layer(), range(3), [0, 1])(X)
    part = part_of(layer(), range(3), [0])
    part.q_proj.kernel.set_value(part.q_proj.kernel[...][:, :10])
    part.q_proj.bias.set_value(part.q_proj.bias[...][:10])
    with pytest.raises(ValueError, match="q_proj: expected a width that H = 4 divides, got 10"):
        part(X)


def test_dropout_is_a_module_whose_rate_acts():
    dropping = gqa_jax.GroupedQueryAttention(24, 6, 2, 0.5, causal=True, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    exact = dropping.eval()(X)[0]
    dropping.train()
    assert error_of(np.asarray(dropping(X)[0]), np.asarray(exact)) > 1e-3
    output, _ = dropping.extend(X, dropping.init_cache(2, 7))  # never drops
    assert error_of(np.asarray(output), np.asarray(exact)) <= 1e-12
    dropping.dropout.rate = 0.0
    np.testing.assert_array_equal(np.asarray(dropping(X)[0]), np.asarray(exact))


# Each made with dropout 0, and called in training mode.
WITHOUT_DROPOUT = {
    "layer": lambda: (gqa_jax.GroupedQueryAttention(24, 6, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64), (X,)),
    "block": lambda: (model_in_training().blocks[0], (jnp.ones((2, 6, 16)), None, None, None)),
    "model": lambda: (model_in_training(), (TOKENS,)),
}


def model_in_training():
    return gqa_jax.Transformer(model().config, rngs=nnx.Rngs(0), param_dtype=jnp.float64)


@pytest.mark.parametrize("kind", WITHOUT_DROPOUT)
def test_a_rate_set_where_there_was_none_raises_until_there_is_a_stream(kind):
    module, arguments = WITHOUT_DROPOUT[kind]()

    def output():
        return np.asarray(jax.tree.leaves(module(*arguments))[0])

    exact = output()
    assert not nnx.to_flat_state(nnx.state(module, nnx.RngState))  # dropout of 0 adds nothing to the state
    module.dropout.rate = 0.5
    sentence = "dropout.rate: expected 0 where dropout was 0 when the module was made, got 0.5: set dropout.rngs = "
    with pytest.raises(ValueError, match=sentence):
        module(*arguments)
    module.eval()
    np.testing.assert_array_equal(output(), exact)
    module.train()
    module.dropout.rngs = nnx.Rngs(dropout=0).dropout  # as the sentence says
    first = output()
    assert error_of(first, exact) > 1e-3
    assert error_of(output(), first) > 1e-3  # drawn anew
    compiled = nnx.jit(lambda module: module(*arguments))
    outputs = [np.asarray(jax.tree.leaves(compiled(module))[0]) for _ in range(2)]
    assert error_of(*outputs) > 1e-3


def test_extending_needs_no_stream():
    whole = model_in_training()
    expected = whole.generate(TOKENS, 3)
    whole.set_attributes(nnx.Dropout, rate=0.5)
    assert whole.generate(TOKENS, 3) == expected


def test_every_rate_of_a_model_may_be_set_at_once():
    whole = model_in_training()
    exact = whole(TOKENS)
    whole.set_attributes(nnx.Dropout, rate=0.5, rngs=nnx.Rngs(dropout=0).dropout)
    modules = [module for _, module in nnx.iter_modules(whole) if isinstance(module, nnx.Dropout)]
    assert len(modules) == 5
    assert {module.rate for module in modules} == {0.5}
    assert error_of(np.asarray(whole(TOKENS)), np.asarray(exact)) > 1e-3
    np.testing.assert_array_equal(np.asarray(whole.eval()(TOKENS)), np.asarray(exact))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_16_bit_layer_says_how_to_cast(dtype):
    narrow = gqa_jax.GroupedQueryAttention(24, 6, 2, rngs=nnx.Rngs(0), param_dtype=dtype)
    name = jnp.dtype(dtype).name
    with pytest.raises(TypeError, match=f"cast the input to {name}, or make the layer with dtype float32"):
        narrow(X.astype(np.float32))

"""gqa_jax under `jax.numpy_rank_promotion("raise")`, over every feature: forward, gradient, stages and caches.

The setting acts where a program is traced, so that nothing is compiled or run here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gqa_jax
import gqa_jax.attention
import gqa_jax.fast
from conformance.cases import inputs
from conformance.cases.table import ALL_FEATURES, kernel_cases, layer_cases
from conformance.targets import Backend

pytestmark = pytest.mark.no_shape_checks
BACKEND = Backend("jax")
KERNEL_CASES = {case.feature.name: case for case in kernel_cases() if case.grouping == ALL_FEATURES}
LAYER_CASES = {case.feature.name: case for case in layer_cases() if case.grouping == ALL_FEATURES}
CACHED = {name: case for name, case in LAYER_CASES.items() if case.config.causal and case.self_attention}
INPUTS = ("query", "key", "value", "mask")


def traced(function, *arguments):
    with jax.numpy_rank_promotion("raise"):
        return jax.eval_shape(function, *arguments)


def split_call(call):
    """The floating inputs, by which a call is differentiated, and the rest of its arguments."""
    to = BACKEND.framework.to
    given = dict(zip(INPUTS, call.arguments, strict=True)) | call.keywords
    given = {name: to(x) for name, x in given.items()}
    floating = {n: x for n, x in given.items() if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)}
    return floating, {name: x for name, x in given.items() if name not in floating}


def layer_of(case):
    layer = BACKEND.layer(case.config, "float64")
    layer.load(inputs.weights(case, "float64"))
    return layer.module


def test_the_setting_acts_where_a_program_is_traced():
    with pytest.raises(ValueError, match="rank"):
        traced(lambda x: x + jnp.ones(3), jnp.ones((2, 3)))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_kernel(name, need_weights):
    floating, rest = split_call(inputs.kernel_call(KERNEL_CASES[name], "float64"))

    def loss(floating):
        results = gqa_jax.grouped_query_attention(**rest | floating | {"need_weights": need_weights})
        return sum(x.sum() for x in results if x is not None)

    gradients = traced(jax.grad(loss), floating)
    assert {n: x.shape for n, x in gradients.items()} == {n: x.shape for n, x in floating.items()}
    arguments = rest | floating
    keywords = {n: x for n, x in arguments.items() if n != "need_weights"}
    assert "context" in traced(lambda: gqa_jax.attention_stages(**keywords))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", LAYER_CASES)
def test_the_layer(name, need_weights):
    case = LAYER_CASES[name]
    floating, rest = split_call(inputs.layer_call(case, "float64"))
    graph, state = nnx.split(layer_of(case))

    def loss(state, floating):
        layer = nnx.merge(graph, state)
        results = layer(**rest | floating | {"need_weights": need_weights})
        return sum(x.sum() for x in results if x is not None)

    gradients, _ = traced(jax.grad(loss, argnums=(0, 1)), state, floating)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, state)
    stages = traced(lambda state: nnx.merge(graph, state).trace(**rest | floating), state)
    assert "output" in stages


@pytest.mark.parametrize(
    ("name", "rolling"),
    [(name, False) for name in CACHED] + [(name, True) for name, case in CACHED.items() if case.config.window],
)
def test_the_cache(name, rolling):
    case = CACHED[name]
    layer = layer_of(case)
    x = BACKEND.framework.to(inputs.layer_call(case, "float64").query)
    lengths = jnp.asarray(np.full(x.shape[0], 1))

    def extend(x):
        cache = layer.init_cache(x.shape[0], 2 * x.shape[1], rolling=rolling)
        first, cache = layer.extend(x, cache, lengths=lengths)
        return first, layer.extend(x[:, :1], cache)

    first, (token, cache) = traced(extend, x)
    assert first.shape == x.shape
    assert token.shape == x[:, :1].shape
    traced(lambda cache: cache.reset([0]).repeat(2).select([0]), cache)


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_blocked_kernel(name, monkeypatch):
    """The path of long calls, whatever the size."""
    monkeypatch.setattr(gqa_jax.attention, "PACKED_ROWS", 0)
    monkeypatch.setattr(gqa_jax.attention, "PACKED_WEIGHTS", 0)
    monkeypatch.setattr(gqa_jax.fast, "BLOCK_ROWS", 6)
    monkeypatch.setattr(gqa_jax.fast, "BLOCK_KEYS", 4)
    floating, rest = split_call(inputs.kernel_call(KERNEL_CASES[name], "float64"))
    called, blocked = [], gqa_jax.fast.blocked_attention

    def spied(*arguments, **keywords):
        called.append(name)
        return blocked(*arguments, **keywords)

    monkeypatch.setattr(gqa_jax.fast, "blocked_attention", spied)

    def loss(floating):
        return gqa_jax.grouped_query_attention(**rest | floating | {"need_weights": False})[0].sum()

    assert set(traced(jax.grad(loss), floating)) == set(floating)
    assert called == [name]

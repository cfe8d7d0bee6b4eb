"""Layers of gqa_jax in one stack: made by `nnx.vmap`, run by `nnx.scan`, the same as one after the other in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conformance.cases.compare import error_of
from gqa_jax import GroupedQueryAttention
from gqa_spec import RopeConfig

pytestmark = pytest.mark.no_shape_checks
DEPTH = 3
X = np.random.default_rng(0).normal(size=(2, 7, 24))
EVERYTHING = {
    "causal": True,
    "rope": RopeConfig(),
    "qkv_bias": True,
    "out_bias": True,
    "qk_norm": "rms",
    "sinks": True,
    "window": 5,
    "softcap": 3.0,
}
SETTINGS = {"plain": {}, "everything": EVERYTHING, "dropout": {"causal": True, "dropout": 0.3}}


def stack_of(settings, seed=0):
    @nnx.split_rngs(splits=DEPTH)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return GroupedQueryAttention(24, 6, 2, rngs=rngs, param_dtype=jnp.float64, **settings)

    return make(nnx.Rngs(seed))


def layers_of(stack):
    """Each layer of a stack by itself."""
    graph, state = nnx.split(stack)

    def layer(number):
        return nnx.merge(graph, jax.tree.map(lambda x: x[number], state))

    return [layer(number) for number in range(DEPTH)]


def stacked(layers):
    graph, _ = nnx.split(layers[0])
    return nnx.merge(graph, jax.tree.map(lambda *x: jnp.stack(x), *(nnx.state(layer) for layer in layers)))


def scanned(stack, x, need_weights=False):
    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return x + layer(x, need_weights=need_weights)[0]

    return run(stack, jnp.asarray(x))


def looped(layers, x):
    for layer in layers:
        x = x + layer(x)[0]
    return x


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_scan_is_a_loop(name, need_weights):
    stack = stack_of(SETTINGS[name])
    layers = layers_of(stack)
    assert error_of(np.asarray(layers[0].q_proj.kernel[...]), np.asarray(layers[1].q_proj.kernel[...])) > 0.1
    got = scanned(stack, X, need_weights)
    assert error_of(np.asarray(got), np.asarray(looped(layers, X))) <= 1e-12


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_a_scan_are_those_of_a_loop(name):
    stack = stack_of(SETTINGS[name])
    layers = layers_of(stack)
    wanted = nnx.DiffState(0, nnx.Param)
    of_stack, of_x = nnx.grad(lambda stack, x: (scanned(stack, x) ** 2).sum(), argnums=(wanted, 1))(
        stack, jnp.asarray(X)
    )
    of_layers, expected = nnx.grad(lambda layers, x: (looped(layers, x) ** 2).sum(), argnums=(wanted, 1))(
        nnx.List(layers), jnp.asarray(X)
    )
    assert error_of(np.asarray(of_x), np.asarray(expected)) <= 1e-12
    pieces = [nnx.to_flat_state(of_layers[i]) for i in range(DEPTH)]
    flat = list(nnx.to_flat_state(of_stack))
    assert flat
    largest = max(float(jnp.abs(variable[...]).max()) for _, variable in flat)
    for number, (path, variable) in enumerate(flat):
        single = np.stack([np.asarray(list(piece)[number][1][...]) for piece in pieces])
        assert [list(piece)[number][0] for piece in pieces] == [path] * DEPTH
        assert np.abs(np.asarray(variable[...]) - single).max() <= 1e-12 * largest, path


def test_a_stack_of_loaded_layers():
    own = [GroupedQueryAttention(24, 6, 2, rngs=nnx.Rngs(i), param_dtype=jnp.float64) for i in range(DEPTH)]
    stack = stacked(own)
    assert error_of(np.asarray(scanned(stack, X)), np.asarray(looped(own, X))) <= 1e-12
    for layer, same in zip(own, layers_of(stack), strict=True):
        weights, others = layer.export_weights(), same.export_weights()
        assert all(np.array_equal(weights[name], others[name]) for name in weights)


def test_a_stack_extends_a_stack_of_caches():
    stack = stack_of(EVERYTHING)
    layers = layers_of(stack)
    caches = jax.tree.map(lambda *x: jnp.stack(x), *(layer.init_cache(2, 7) for layer in layers))

    @nnx.scan(in_axes=(0, 0, nnx.Carry), out_axes=(nnx.Carry, 0))
    def extend(layer, cache, x):
        y, cache = layer.extend(x, cache)
        return x + y, cache

    first, caches = extend(stack, caches, jnp.asarray(X[:, :4]))
    rest, caches = extend(stack, caches, jnp.asarray(X[:, 4:]))
    assert caches.length.tolist() == [[7, 7]] * DEPTH
    expected = np.asarray(looped(layers, X))
    assert error_of(np.concatenate([np.asarray(first), np.asarray(rest)], axis=1), expected) <= 1e-12


def test_weights_of_a_stack_are_moved_layer_by_layer():
    stack = stack_of({})
    weights = layers_of(stack)[0].export_weights()
    sentence = r"q_proj.weight: expected 2 axes, got \(3, 24, 24\): take one layer of the stack"
    with pytest.raises(ValueError, match=sentence):
        stack.export_weights()
    with pytest.raises(ValueError, match=sentence):
        stack.load_weights(weights)

"""The layers: their interface, their stages, their weights. That they agree is test_conformance."""

import dataclasses

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import error_of
from conformance.cases.table import ALL_FEATURES, layer_cases
from gqa_spec import AttentionConfig
from gqa_spec.sizes import parameter_count
from gqa_weights import weight_shapes
from tests.helpers import new_layer

CASES = {case.name: case for case in layer_cases() if case.grouping == ALL_FEATURES}
WHOLE = CASES[f"{ALL_FEATURES} / whole layer"]


def test_the_first_call_of_the_readme(backend):
    assert backend.module.GroupQueryAttention is backend.module.GroupedQueryAttention
    gqa = new_layer(backend, embed_dim=512, num_heads=8, num_kv_heads=2)
    x = backend.framework.to(np.random.default_rng(0).normal(size=(2, 10, 512)))
    output, weights = gqa(x, x, x)
    assert tuple(output.shape) == (2, 10, 512)
    assert tuple(weights.shape) == (2, 8, 10, 10)
    np.testing.assert_allclose(backend.framework.back(weights).sum(-1), 1, rtol=1e-14)


def test_key_defaults_to_query_and_value_to_key(backend):
    gqa = new_layer(backend, embed_dim=12, num_heads=6, num_kv_heads=2)
    x, y = (backend.framework.to(np.random.default_rng(i).normal(size=(2, 5, 12))) for i in range(2))
    back = backend.framework.back
    np.testing.assert_array_equal(back(gqa(x)[0]), back(gqa(x, x, x)[0]))
    np.testing.assert_array_equal(back(gqa(x, y)[0]), back(gqa(x, y, y)[0]))


@pytest.mark.parametrize("name", CASES)
def test_without_weights_the_output_is_the_same(backend, name):
    case = CASES[name]
    layer, call = backend.layer(case.config, "float64"), inputs.layer_call(case, "float64")
    layer.load(inputs.weights(case, "float64"))
    asked = layer(call)
    keywords = {**call.keywords, "need_weights": False}
    output, weights = layer(dataclasses.replace(call, keywords=keywords))
    assert weights is None
    assert asked[1] is not None
    assert error_of(output, asked[0]) <= 1e-12


def test_the_stages_of_a_layer(backend):
    """Every stage that is on, in order, heads split, and the last of them the output itself."""
    layer, call = backend.layer(WHOLE.config, "float64"), inputs.layer_call(WHOLE, "float64")
    layer.load(inputs.weights(WHOLE, "float64"))
    to, back = backend.framework.to, backend.framework.back
    stages = layer.module.trace(*(to(x) for x in call.arguments))
    B, T, S, c = WHOLE.B, WHOLE.T, WHOLE.S, WHOLE.config
    q, k, pairs = (B, c.num_heads, T, c.head_dim), (B, c.num_kv_heads, S, c.head_dim), (B, c.num_heads, T, S)
    assert {name: tuple(x.shape) for name, x in stages.items()} == {
        "q_proj": q,
        "k_proj": k,
        "v_proj": (*k[:3], c.v_head_dim),
        "q_norm": q,
        "k_norm": k,
        "q_rope": q,
        "k_rope": k,
        "scores": pairs,
        "capped": pairs,
        "masked": pairs,
        "weights": pairs,
        "logsumexp": pairs[:3],
        "context": (*q[:3], c.v_head_dim),
        "output": (B, T, c.embed_dim),
    }
    expected = ["q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rope", "k_rope", "scores", "capped", "masked"]
    assert list(stages) == [*expected, "weights", "logsumexp", "context", "output"]
    output, weights = layer(call)
    assert error_of(back(stages["output"]), output) <= 1e-14
    assert error_of(back(stages["weights"]), weights) <= 1e-14


def test_stages_that_are_off_are_not_shown(backend):
    gqa = new_layer(backend, embed_dim=12, num_heads=6, num_kv_heads=2)
    x = backend.framework.to(np.ones((2, 5, 12)))
    expected = ["q_proj", "k_proj", "v_proj", "scores", "masked", "weights", "logsumexp", "context", "output"]
    assert list(gqa.trace(x)) == expected


def test_the_size_is_known_beforehand(backend):
    for case in CASES.values():
        layer = backend.layer(case.config, "float64")
        layer.load(inputs.weights(case, "float64"))
        exported = layer.module.export_weights()
        assert sum(x.size for x in exported.values()) == parameter_count(case.config)
        assert {name: x.shape for name, x in exported.items()} == weight_shapes(case.config)


def test_exported_weights_are_copies(backend):
    layer = backend.layer(WHOLE.config, "float64")
    layer.load(inputs.weights(WHOLE, "float64"))
    exported = layer.module.export_weights()
    exported["q_proj.weight"][:] = 0
    assert layer.module.export_weights()["q_proj.weight"].any()


def test_loaded_weights_are_copies(backend):
    given = inputs.weights(WHOLE, "float64")
    layer = backend.layer(WHOLE.config, "float64")
    layer.load(given)
    given["sinks"][:] = 99
    assert 99 not in layer.module.export_weights()["sinks"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_weights_are_held_bit_for_bit(backend, dtype):
    given = inputs.weights(WHOLE, dtype)
    layer = backend.layer(WHOLE.config, dtype)
    layer.load(given)
    exported = layer.module.export_weights()
    assert list(exported) == list(given)
    for name, x in given.items():
        assert exported[name].dtype == x.dtype
        assert exported[name].tobytes() == x.tobytes(), name


def test_loading_is_all_or_nothing(backend):
    layer = backend.layer(WHOLE.config, "float64")
    layer.load(inputs.weights(WHOLE, "float64", seed=1))
    before = layer.module.export_weights()
    wrong = inputs.weights(WHOLE, "float64", seed=2) | {"sinks": np.zeros(2)}
    with pytest.raises(ValueError, match="sinks"):
        layer.load(wrong)
    for name, x in layer.module.export_weights().items():
        np.testing.assert_array_equal(x, before[name])


def test_initial_values(backend):
    """SPEC 17."""
    config = AttentionConfig(
        embed_dim=200, num_heads=6, num_kv_heads=2, head_dim=40, qkv_bias=True, sinks=True, qk_norm="rms_plus_one"
    )
    options = backend.framework.options("float64")
    weights = backend.module.GroupedQueryAttention.from_config(config, **options).export_weights()
    for name, x in weights.items():
        if name.endswith("_proj.weight"):
            bound = x.shape[1] ** -0.5
            assert np.abs(x).max() <= bound, name
            assert abs(x.std() / (bound / 3**0.5) - 1) < 0.05, name
        else:
            assert not x.any(), name


def test_dropout_only_while_training(backend):
    x = backend.framework.to(np.random.default_rng(0).normal(size=(3, 7, 24)))
    gqa = new_layer(backend, embed_dim=24, num_heads=6, num_kv_heads=2, dropout=0.5)
    back = backend.framework.back
    first, second = (gqa(x) for _ in range(2))
    assert error_of(back(first[0]), back(second[0])) > 0.01
    np.testing.assert_array_equal(back(first[1]), back(second[1]))  # returned weights are those before dropout
    gqa.eval()
    np.testing.assert_array_equal(back(gqa(x)[0]), back(gqa(x)[0]))


def test_dropout_keeps_the_mean(backend):
    """Inverted scaling: the expected output is that without dropout, here within five standard errors of 400 draws."""
    x = backend.framework.to(np.random.default_rng(0).normal(size=(1, 4, 6)))
    gqa = new_layer(backend, embed_dim=6, num_heads=6, num_kv_heads=2, dropout=0.3)
    back = backend.framework.back
    drawn = np.stack([back(gqa(x, need_weights=False)[0]) for _ in range(400)])
    standard_error = drawn.std(axis=0) / 400**0.5
    gqa.eval()
    assert (np.abs(drawn.mean(axis=0) - back(gqa(x)[0])) < 5 * standard_error).all()

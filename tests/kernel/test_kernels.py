"""The kernels of the three backends against the oracle, and the oracle against five loops of plain Python."""

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import compare
from conformance.cases.table import ALL_FEATURES, kernel_cases
from conformance.checks.backends import kernel_checks
from conformance.reference.kernel import ReferenceKernel
from conformance.targets import Backend

CASES = {case.name: case for case in kernel_cases()}
ORDER = ("scores", "capped", "masked", "weights", "logsumexp", "context")
ONE_GROUPING = [name for name in CASES if name.startswith(ALL_FEATURES)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pairs < 300_000])
def test_the_oracle_agrees_with_five_loops(name):
    call = inputs.kernel_call(CASES[name], "float64")
    expected = ReferenceKernel()(*call.arguments, **call.keywords)
    got = Backend("numpy").attention(call)
    for g, e in zip(got, expected, strict=True):
        assert compare(g, e, "float64", 1e-12).reason == ""


@pytest.mark.parametrize("name", ONE_GROUPING)
def test_every_kernel_agrees_with_the_oracle(backend, name):
    checks = list(kernel_checks(CASES[name], "float64", backend))
    assert [check.verdict for check in checks] == ["pass", "pass"], checks


@pytest.mark.parametrize("name", ONE_GROUPING)
def test_stages_are_the_parts_of_the_result(backend, name):
    """weights of the stages are the returned ones, masked is -inf exactly where the weights are 0 by the mask."""
    call = inputs.kernel_call(CASES[name], "float64")
    to, back = backend.framework.to, backend.framework.back
    arguments = [to(x) for x in call.arguments]
    keywords = {key: to(x) for key, x in call.keywords.items()}
    stages = backend.framework.apply(backend.module.attention_stages, *arguments, **keywords)
    stages = {name: back(stages[name]) for name in ORDER if name in stages}  # a jitted dictionary is sorted
    context, weights = backend.attention(call)
    np.testing.assert_allclose(stages["weights"], weights, rtol=0, atol=1e-15)
    np.testing.assert_allclose(stages["context"], context, rtol=0, atol=1e-14)
    assert ("capped" in stages) == ("softcap" in keywords)
    np.testing.assert_array_equal(np.isneginf(stages["masked"]) & (weights != 0), False)
    denominator = np.exp(stages["logsumexp"])[..., None]  # 0 for a query that sees no key, whose weights are 0
    np.testing.assert_allclose(denominator * weights, np.exp(stages["masked"]) * (denominator > 0), rtol=1e-12)


def test_a_case_computed_by_hand(backend):
    """Two queries, two keys, one head of size 1: softmax of (0, ln 3) is (1/4, 3/4)."""
    query = np.array([[[[0.0], [np.log(3.0)]]]])
    key, value = np.array([[[[0.0], [1.0]]]]), np.array([[[[4.0], [8.0]]]])
    context, weights = backend.attention(inputs.Call(query, key, value, None, {"scale": 1.0}))
    np.testing.assert_allclose(weights, [[[[1 / 2, 1 / 2], [1 / 4, 3 / 4]]]], rtol=1e-15)
    np.testing.assert_allclose(context, [[[[6.0], [7.0]]]], rtol=1e-15)


def test_a_sink_computed_by_hand(backend):
    """SPEC 8: logits 1, 2, 3 and a sink of 2.5 leave weights that sum to 0.7125."""
    query, value = np.ones((1, 1, 1, 1)), np.ones((1, 1, 3, 1))
    key = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    call = inputs.Call(query, key, value, None, {"scale": 1.0, "sinks": np.array([2.5])})
    context, weights = backend.attention(call)
    e = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(weights[0, 0, 0], e / (e.sum() + np.exp(2.5)), rtol=1e-14)
    np.testing.assert_allclose(context.item(), 0.7125, atol=5e-5)


def test_head_order_by_hand(backend):
    """Six query heads over two KV heads read 0, 0, 0, 1, 1, 1."""
    query, key = np.zeros((1, 6, 1, 1)), np.zeros((1, 2, 1, 1))
    value = np.array([10.0, 20.0]).reshape(1, 2, 1, 1)
    context, _ = backend.attention(inputs.Call(query, key, value, None, {}))
    assert context.ravel().tolist() == [10, 10, 10, 20, 20, 20]


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("place", ["key", "value"])
def test_a_nan_that_is_visible_is_honoured(backend, place, softcap):
    """SPEC 3: visibility comes from the mask, never from the score."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s) for n, s in (("query", (2, 3, 4)), ("key", (1, 5, 4)), ("value", (1, 5, 7)))}
    arrays = {n: x[None] for n, x in arrays.items()}
    arrays[place][0, 0, 2] = np.nan
    call = inputs.Call(*arrays.values(), None, {} if softcap is None else {"softcap": softcap})
    context, _ = backend.attention(call)
    assert np.isnan(context).all()


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)], ids=["B = 0", "T = 0", "S = 0"])
@pytest.mark.parametrize("keywords", [{}, {"causal": True}, {"causal": True, "window": 2}], ids=str)
def test_axes_of_no_length(backend, shape, keywords):
    """Nothing to attend to is an empty row: zeros, never an error."""
    B, T, S = shape
    call = inputs.Call(np.ones((B, 6, T, 4)), np.ones((B, 2, S, 4)), np.ones((B, 2, S, 3)), None, keywords)
    context, weights = backend.attention(call)
    assert context.shape == (B, 6, T, 3)
    assert weights.shape == (B, 6, T, S)
    if S == 0:
        assert not context.any()


def test_arguments_are_never_modified(backend):
    call = inputs.kernel_call(CASES[f"{ALL_FEATURES} / poison"], "float64")
    before = [x.copy() for x in call.arguments]
    arguments = [backend.framework.to(x) for x in call.arguments]
    backend.module.grouped_query_attention(*arguments)
    for x, b in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(backend.framework.back(x), b)

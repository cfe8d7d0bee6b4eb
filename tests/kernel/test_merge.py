"""The logarithm of the softmax's denominator, and partial attentions merged by it into attention over all keys."""

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import error_of
from conformance.cases.table import ALL_FEATURES, kernel_cases
from conformance.targets import BACKENDS, Backend

CASES = {case.name: case for case in kernel_cases()}
S = 11


@pytest.fixture(params=BACKENDS)
def backend(request):
    return Backend(request.param)


def call_of(backend, T=7, B=2, **keywords):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(B, n, t, h)) for n, t, h in ((6, T, 4), (2, S, 4), (2, S, 5)))
    to = backend.framework.to
    return [to(x) for x in (query, key, value)], {name: to(x) for name, x in keywords.items()}


def stages(backend, arguments, keywords):
    found = backend.module.attention_stages(*arguments, **keywords)
    return {name: backend.framework.back(x) for name, x in found.items()}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(ALL_FEATURES)])
def test_logsumexp_is_that_of_the_masked_scores_and_the_sink(backend, name):
    call, to = inputs.kernel_call(CASES[name], "float64"), backend.framework.to
    keywords = {key: to(x) for key, x in call.keywords.items()}
    found = stages(backend, [to(x) for x in call.arguments], keywords)
    expected = np.logaddexp.reduce(found["masked"], axis=-1, initial=-np.inf)
    if "sinks" in call.keywords:
        sinks = np.logaddexp(expected, call.keywords["sinks"][:, None])
        expected = np.where(np.isneginf(found["masked"]).all(axis=-1), -np.inf, sinks)
    assert found["logsumexp"].dtype == np.float64
    np.testing.assert_allclose(found["logsumexp"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cuts", [[4], [1, 2, 9], [0, 10]], ids=str)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"causal": True}, {"causal": True, "window": 3}, {"softcap": 2.0, "sinks": np.arange(6.0)}],
    ids=str,
)
def test_attention_over_parts_of_the_keys_merges_into_that_over_all(backend, keywords, cuts):
    """Some parts hide every key from some queries, an empty part from all. The last part has the sink."""
    offset = -2 if keywords.get("causal") else S - 7
    arguments, settings = call_of(backend, **keywords, offset=offset)
    query, key, value = arguments
    whole = stages(backend, arguments, settings)
    contexts, logsumexps = [], []
    for start, stop in zip([0, *cuts], [*cuts, S], strict=True):
        part = settings | {"offset": offset - start}
        part |= {"sinks": None} if "sinks" in settings and stop < S else {}
        found = backend.module.attention_stages(query, key[:, :, start:stop], value[:, :, start:stop], **part)
        contexts.append(found["context"])
        logsumexps.append(found["logsumexp"])
    context, logsumexp = (backend.framework.back(x) for x in backend.module.merge(contexts, logsumexps))
    np.testing.assert_allclose(context, whole["context"], atol=1e-13)
    np.testing.assert_allclose(logsumexp, whole["logsumexp"], atol=1e-13)
    assert np.isneginf(logsumexp).any() == (offset == -2)


def test_16_bit_contexts_are_merged_in_float32(backend):
    arguments, _ = call_of(backend)
    kind = inputs.DTYPES["bfloat16"]
    query, key, value = (backend.framework.to(backend.framework.back(x).astype(kind)) for x in arguments)
    parts = [backend.module.attention_stages(query, key[:, :, p], value[:, :, p]) for p in (slice(4), slice(4, S))]
    context, logsumexp = backend.module.merge([p["context"] for p in parts], [p["logsumexp"] for p in parts])
    assert backend.framework.back(context).dtype == kind
    assert backend.framework.back(logsumexp).dtype == np.float32
    whole = backend.framework.back(backend.module.attention_stages(query, key, value)["context"])
    assert error_of(backend.framework.back(context).astype(float), whole.astype(float)) < 0.02


@pytest.mark.no_shape_checks
def test_wrong_parts_raise(backend):
    arguments, _ = call_of(backend)
    found = backend.module.attention_stages(*arguments)
    with pytest.raises(ValueError, match="contexts, logsumexps: expected as many of both, at least one, got 0 and 0"):
        backend.module.merge([], [])
    with pytest.raises(ValueError, match=r"logsumexps: expected \(B, N, T\) with B = 2, N = 6, T = 7, got"):
        backend.module.merge([found["context"]], [found["logsumexp"][:, :, 1:]])


def test_gradients_of_a_merge_are_those_of_the_whole():
    import jax
    import jax.numpy as jnp

    backend = Backend("jax")
    (query, key, value), settings = call_of(backend, causal=True, offset=-2)

    def whole(query, key, value):
        return (backend.module.attention_stages(query, key, value, **settings)["context"] ** 2).sum()

    def merged(query, key, value):
        parts = [
            backend.module.attention_stages(query, key[:, :, a:b], value[:, :, a:b], causal=True, offset=-2 - a)
            for a, b in ((0, 4), (4, S))
        ]
        context, _ = backend.module.merge([p["context"] for p in parts], [p["logsumexp"] for p in parts])
        return (context**2).sum()

    expected = jax.grad(whole, argnums=(0, 1, 2))(query, key, value)
    for got, gradient in zip(jax.grad(merged, argnums=(0, 1, 2))(query, key, value), expected, strict=True):
        assert bool(jnp.isfinite(got).all())
        np.testing.assert_allclose(np.asarray(got), np.asarray(gradient), atol=1e-12)

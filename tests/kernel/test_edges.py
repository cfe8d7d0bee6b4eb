"""Where other implementations break: no key at all, poison, extreme biases and scores, on every path."""

import numpy as np
import pytest

from conformance.cases.inputs import Call

MIN = np.finfo(np.float64).min


def arrays(B=2, N=6, K=2, T=5, S=7, H=4, Hv=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, N, T, H)), rng.normal(size=(B, K, S, H)), rng.normal(size=(B, K, S, Hv))


@pytest.fixture(params=[True, False], ids=["with weights", "without"])
def attend(backend, request):
    """context of a call, on the plain path and on whichever is taken without weights."""

    def attend(query, key, value, mask=None, **keywords):
        keywords |= {} if request.param else {"need_weights": False}
        return backend.attention(Call(query, key, value, mask, keywords))[0]

    return attend


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38, 1e308])
@pytest.mark.parametrize("place", ["key", "value", "both"])
@pytest.mark.parametrize(
    "hidden",
    [
        {"mask": "padding"},
        {"mask": "float"},
        {"causal": True, "offset": 0},
        {"causal": True, "offset": np.array([1, 0])},
    ],
    ids=["bool", "float", "offset", "offset per row"],
)
def test_an_invisible_key_has_no_influence(attend, poison, place, hidden):
    query, key, value = arrays()
    visible = np.arange(7) < (
        np.array([[4], [2]]) if "mask" in hidden else [[6], [5]] if np.ndim(hidden["offset"]) else 5
    )
    visible = np.broadcast_to(visible, (2, 7))[:, None, :, None]
    mask = visible.swapaxes(2, 3)
    mask = {"padding": mask, "float": np.where(mask, 0.5, -np.inf)}.get(hidden.get("mask"))
    keywords = {name: x for name, x in hidden.items() if name != "mask"}
    expected = attend(query, key, value, mask, **keywords)
    bad_key = np.where(visible | (place == "value"), key, poison)
    bad_value = np.where(visible | (place == "key"), value, poison)
    got = attend(query, bad_key, bad_value, mask, **keywords)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sinks", [None, np.array([3.0, -1, 0, 2, 1, 5])], ids=["no sinks", "sinks"])
def test_a_row_that_sees_no_key_is_zero_even_if_its_query_is_nan(attend, sinks):
    query, key, value = arrays()
    mask = np.ones((2, 1, 5, 7), bool)
    mask[0, 0, 2] = mask[1, 0, 4] = False
    keywords = {} if sinks is None else {"sinks": sinks}
    clean = attend(query, key, value, mask, **keywords)
    query[0, :, 2] = np.nan
    query[1, :, 4] = np.inf
    got = attend(query, key, value, mask, **keywords)
    assert not got[0, :, 2].any()
    assert not got[1, :, 4].any()
    np.testing.assert_allclose(got, clean, rtol=1e-12, atol=1e-14)


def test_a_row_of_finite_minima_is_a_mean_not_an_empty_row(attend):
    """finfo.min is a bias: all keys equally unlikely, so all equally likely."""
    query, key, value = arrays()
    context = attend(query, key, value, np.full((5, 7), MIN))
    np.testing.assert_allclose(
        context, np.broadcast_to(value.mean(2).repeat(3, 1)[:, :, None], context.shape), rtol=1e-12
    )


def test_unequal_minima_leave_the_largest(attend):
    """SPEC 3: [min, min / 2, min] is a row of biases, so its largest weight is that of min / 2."""
    query, key, value = arrays(S=3)
    context = attend(query, key, value, np.tile([MIN, MIN / 2, MIN], (5, 1)))
    np.testing.assert_allclose(context, np.broadcast_to(value[:, :, 1].repeat(3, 1)[:, :, None], context.shape))


def test_very_large_scores(attend):
    """Scores of 1e4: the softmax picks one key, and nothing overflows."""
    query, key, value = arrays()
    context = attend(query * 1e2, key * 1e2, value, scale=1.0)
    assert np.isfinite(context).all()
    best = np.einsum("bkgth,bksh->bkgts", query.reshape(2, 2, 3, 5, 4), key).argmax(-1)
    picked = np.take_along_axis(value[:, :, None, None], best[..., None, None], axis=4)[..., 0, :]
    np.testing.assert_allclose(context.reshape(2, 2, 3, 5, 3), picked, atol=1e-6)


@pytest.mark.parametrize("keywords", [{"window": 1}, {"window": 1, "causal": True}, {"chunk": 1}])
def test_one_key_windows_return_the_value_itself(attend, keywords):
    query, key, value = arrays(T=7)
    np.testing.assert_allclose(attend(query, key, value, **keywords), value.repeat(3, 1), rtol=1e-14)


def test_a_sink_of_minus_infinity_is_none(attend):
    query, key, value = arrays()
    np.testing.assert_allclose(
        attend(query, key, value, sinks=np.full(6, -np.inf)), attend(query, key, value), rtol=1e-13
    )


def test_a_huge_sink_takes_everything(attend):
    query, key, value = arrays()
    assert not attend(query, key, value, sinks=np.full(6, 1e4)).any()


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)], ids=["B = 0", "T = 0", "S = 0"])
@pytest.mark.parametrize("keywords", [{}, {"causal": True, "window": 2}, {"chunk": 2, "sinks": np.ones(6)}], ids=str)
def test_axes_of_no_length(attend, shape, keywords):
    B, T, S = shape
    context = attend(*arrays(B=B, T=T, S=S), **keywords)
    assert context.shape == (B, 6, T, 3)
    assert S > 0 or not context.any()


def test_a_float_mask_of_a_wider_dtype_keeps_its_biases(backend):
    """float64's minimum is finite, though float32 has no such number."""
    query, key, value = (x.astype(np.float32) for x in arrays())
    mask = np.zeros((5, 7))
    mask[:, 0] = MIN
    mask[2] = MIN
    context, weights = backend.attention(Call(query, key, value, mask, {}))
    assert np.isfinite(context).all()
    np.testing.assert_allclose(weights[:, :, 2], 1 / 7, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_every_mask_combines_with_the_layers_own(backend, kind):
    """A user's mask and causal, window and chunk: a key must pass all."""
    masks, to, back = backend.module.masks, backend.framework.to, backend.framework.back
    query, key, value = arrays()
    built = [masks.causal(5, 7), masks.window(5, 7, 4), masks.chunk(5, 7, 3), masks.padding(to(np.array([6, 4])), 7)]
    user = built[-1] if kind == "bool" else masks.combine(built[-1], masks.alibi(6, 5, 7))
    explicit = masks.combine(*built[:-1], user)
    got = backend.attention(Call(query, key, value, back(user), {"causal": True, "window": 4, "chunk": 3}))
    explicit = back(explicit)
    explicit = explicit if explicit.ndim == 4 else explicit[None, None]
    expected = backend.attention(Call(query, key, value, explicit, {}))
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-15)

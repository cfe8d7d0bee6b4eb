"""Masks, each drawn as a picture: rows are queries, columns keys, 1 may attend. The same in every backend."""

import numpy as np
import pytest


def picture(drawing):
    return np.array([[mark == "1" for mark in row] for row in drawing.split()])


def mask(backend, name, *arguments, **keywords):
    to = backend.framework.to
    built = getattr(backend.module.masks, name)(*(to(x) for x in arguments), **{k: to(x) for k, x in keywords.items()})
    return backend.framework.back(built)


@pytest.mark.parametrize(
    ("T", "S", "offset", "drawing"),
    [
        (3, 3, None, "100 110 111"),
        (3, 5, None, "11100 11110 11111"),
        (3, 5, 0, "10000 11000 11100"),
        (3, 5, -1, "00000 10000 11000"),
        (4, 2, None, "00 00 10 11"),
        (1, 4, None, "1111"),
    ],
)
def test_causal(backend, T, S, offset, drawing):
    np.testing.assert_array_equal(mask(backend, "causal", T, S, offset), picture(drawing))


@pytest.mark.parametrize(
    ("window", "offset", "drawing"),
    [(1, 0, "10000 01000 00100"), (2, 0, "11000 11100 01110"), (3, None, "11111 01111 00111"), (9, None, "11111 " * 3)],
)
def test_window_is_a_band(backend, window, offset, drawing):
    np.testing.assert_array_equal(mask(backend, "window", 3, 5, window, offset), picture(drawing))


def test_window_with_causal_counts_the_query_itself(backend):
    both = mask(backend, "causal", 4, 4) & mask(backend, "window", 4, 4, 3)
    np.testing.assert_array_equal(both, picture("1000 1100 1110 0111"))


@pytest.mark.parametrize(
    ("offset", "drawing"),
    [(0, "11000 11000 00110"), (None, "00110 00110 00001"), (-1, "00000 11000 11000"), (-3, "00000 00000 00000")],
)
def test_chunk(backend, offset, drawing):
    np.testing.assert_array_equal(mask(backend, "chunk", 3, 5, 2, offset), picture(drawing))


def test_offsets_per_row(backend):
    got = mask(backend, "causal", 2, 3, np.array([0, 1, -1]))
    assert got.shape == (3, 1, 2, 3)
    for row, drawing in enumerate(["100 110", "110 111", "000 100"]):
        np.testing.assert_array_equal(got[row, 0], picture(drawing))


def test_padding(backend):
    got = mask(backend, "padding", np.array([3, 0, 4]), 4)
    assert got.shape == (3, 1, 1, 4)
    np.testing.assert_array_equal(got[:, 0, 0], picture("1110 0000 1111"))


def test_segments(backend):
    got = mask(backend, "segments", np.array([[0, 0, 1]]), np.array([[0, 1, 1, 2]]))
    assert got.shape == (1, 1, 3, 4)
    np.testing.assert_array_equal(got[0, 0], picture("1000 1000 0110"))


def test_alibi_has_the_published_slopes(backend):
    """Press et al.: 1/2, 1/4, ... 1/256 for 8 heads; for 6 the first four of 4 heads and every other one of 8."""
    eight = mask(backend, "alibi", 8, 1, 2)
    assert eight.dtype == np.float32
    assert eight.shape == (1, 8, 1, 2)
    np.testing.assert_array_equal(-eight[0, :, 0, 0], 2.0 ** -np.arange(1.0, 9))
    six = mask(backend, "alibi", 6, 1, 2)
    np.testing.assert_allclose(-six[0, :, 0, 0], [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3], rtol=1e-7)


def test_alibi_counts_distance_both_ways(backend):
    got = -mask(backend, "alibi", 1, 2, 3, 0)[0, 0] * 256
    np.testing.assert_allclose(got, [[0, 1, 2], [1, 0, 1]])


def test_combine(backend):
    to, back = backend.framework.to, backend.framework.back
    combine = backend.module.masks.combine
    a, b = to(picture("110 011")), to(picture("101 111"))
    np.testing.assert_array_equal(back(combine(a, b)), picture("100 011"))
    bias = np.array([[1.0, 2.0, -np.inf], [0.5, 0.0, 3.0]])
    np.testing.assert_array_equal(back(combine(a, to(bias))), [[1, 2, -np.inf], [-np.inf, 0, 3]])
    np.testing.assert_array_equal(back(combine(to(bias), to(bias))), bias * 2)


@pytest.mark.parametrize("sign", [-1, 1])
def test_finite_sums_stay_finite(backend, sign):
    to, back = backend.framework.to, backend.framework.back
    extreme = np.full((2, 2), sign * np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(back(backend.module.masks.combine(to(extreme), to(extreme))), extreme)

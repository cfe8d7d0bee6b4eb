"""The comparison can fail in each of its ways, and says which."""

import numpy as np
import pytest

from conformance.cases.compare import bound, compare, error_of

REFERENCE = np.array([[0.0, 1.0], [-np.inf, 4.0]])


def changed(place, value):
    got = REFERENCE.copy()
    got[place] = value
    return got


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (REFERENCE.copy(), ""),
        (REFERENCE[:1], "shape (1, 2), expected (2, 2)"),
        (REFERENCE.astype(np.float32), "dtype float32, expected float64"),
        (changed((0, 0), 1e-300), "not 0 where the expected value is exactly 0"),
        (changed((1, 0), -1e300), "-inf in other places"),
        (changed((0, 1), -np.inf), "-inf in other places"),
        (changed((0, 1), np.nan), "NaN where a number is expected"),
        (changed((0, 1), 1.0 + 1e-10), "error 2.5e-11 of the largest value, at most 1e-12 allowed"),
    ],
)
def test_it_says_what_differs(got, reason):
    assert compare(got, REFERENCE, "float64", 1e-12).reason == reason


def test_the_zero_of_a_gradient_and_a_weight_that_underflows_are_values_like_others():
    assert compare(changed((0, 0), 1e-16), REFERENCE, "float64", 1e-12, exact_zeros=False).reason == ""
    assert compare(changed((0, 0), 1e-11), REFERENCE, "float64", 1e-12, exact_zeros=False).reason != ""
    assert compare(changed((0, 0), 1e-310), REFERENCE, "float64", 1e-12).reason == ""


def test_errors_are_relative_to_the_largest_value():
    assert error_of(np.array([1.0, 102.0]), np.array([1.0, 100.0])) == pytest.approx(0.02)


def test_the_bounds_are_those_of_the_specification():
    assert bound("float64", 1.0) == 1e-12
    assert bound("float32", 0.0) == 4 * np.finfo(np.float32).eps
    assert bound("float32", 1e-5) == 4e-5
    assert bound("bfloat16", 0.0) == 4 * 2.0**-7

"""Comparison: shape, then dtype, then values, and which of them failed. The bounds are those of SPEC 15."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}


@dataclass(frozen=True)
class Difference:
    """How two arrays differ. error: largest absolute difference over the largest expected value, in units of the
    dtype's epsilon. reason: empty where they agree.
    """

    error: float
    reason: str = ""


def scale_of(reference: Array) -> float:
    """The largest finite magnitude, which errors are relative to; 1 for an array of zeros or of nothing."""
    finite = np.abs(reference[np.isfinite(reference)], dtype=np.float64)
    return float(finite.max(initial=0.0)) or 1.0


def error_of(got: Array, reference: Array) -> float:
    """Largest absolute difference over the largest reference value; inf where non-finite values are in other places."""
    got, reference = got.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (got == reference) | (np.isnan(got) & np.isnan(reference))
        difference = np.where(same, 0.0, np.abs(got - reference))
    worst = float(np.max(difference, initial=0.0))
    return worst / scale_of(reference) if np.isfinite(worst) else np.inf


def bound(dtype: str, plain_error: float) -> float:
    """What an error may be, relative to the largest value: 1e-12 in float64; else 4 * max(the plain NumPy computation's
    own error in that dtype, epsilon).
    """
    return 1e-12 if dtype == "float64" else 4 * max(plain_error, EPSILON[dtype])


def compare(got: Array, reference: Array, dtype: str, allowed: float, *, exact_zeros: bool = True) -> Difference:
    """got against the float64 oracle: shape, dtype, exact zeros and -inf in place, then values.

    exact_zeros: of outputs and weights, where 0 means invisible; a number below the smallest normal float32 or float64
    counts as 0, for a weight that underflows may end there. A gradient's zero is a value like others.
    """
    if got.shape != reference.shape:
        return Difference(np.inf, f"shape {got.shape}, expected {reference.shape}")
    if str(got.dtype) != dtype:
        return Difference(np.inf, f"dtype {got.dtype}, expected {dtype}")
    if np.any(np.isnan(got) & ~np.isnan(reference)):
        return Difference(np.inf, "NaN where a number is expected")
    error = error_of(got, reference)
    units = error / EPSILON[dtype]
    if exact_zeros and np.any((reference == 0) & (np.abs(got) >= SMALLEST[dtype])):
        return Difference(units, "not 0 where the expected value is exactly 0")
    if np.any(np.isneginf(got) != np.isneginf(reference)):
        return Difference(units, "-inf in other places")
    if not error <= allowed:
        return Difference(units, f"error {error:.3g} of the largest value, at most {allowed:.3g} allowed")
    return Difference(units)

"""Explanations: a name that predicts the passing cases too, or none; and kernels of other designs raise no alarm."""

import sys

import pytest

import conformance
from conformance.cases.table import kernel_cases
from conformance.targets import NotATarget


@pytest.fixture
def module(sample_targets, monkeypatch):
    """A module of sample targets by name."""
    monkeypatch.syspath_prepend(str(sample_targets))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load


NAMED = {
    "kernel": set(),
    "mask_ignored": {"boolean mask: ignored"},
    "output_too_large": {"times 1.25"},
    "window_plus_one": {
        "causal window of W: counts neighbours: W + 1 keys",
        "window without causal: counts neighbours: 2 W + 1 keys",
    },
    "wrong_with_scale": {""},
}
FEATURES = ("plain", "causal", "bool mask", "mask per row", "window", "window band", "scale", "float mask")


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("name", NAMED)
def test_a_name_predicts_what_passes_too(module, name):
    found = conformance.judge(getattr(module("named_faults"), name), features=FEATURES)
    assert {check.explanation for check in found.failures} == NAMED[name]
    assert found.passed == (name == "kernel")


CONFINED = {
    "window_forgotten_while_decoding": {"causal window of W: ignored, with one query"},
    "tiled_while_decoding": {"head order: tiled: n % K, with one query"},
}


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("name", CONFINED)
def test_a_fault_of_one_query_alone_is_confined_to_it(module, name):
    features = ("plain", "causal", "window", "bool mask")
    found = conformance.judge(getattr(module("named_faults"), name), features=features, profile="full")
    assert {check.explanation for check in found.failures} == CONFINED[name]


@pytest.mark.no_shape_checks
def test_a_small_error_of_one_feature_is_not_called_float32(module):
    features = ("plain", "causal", "QK-norm rms")
    found = conformance.judge(module("named_faults").EpsilonOutside, features=features, dtypes=("float64",))
    assert {check.explanation for check in found.failures} == {"right but for rounding"}
    assert all("QK-norm" in check.case for check in found.failures)


@pytest.mark.no_shape_checks
def test_which_pairing_is_said(module):
    features = ("plain", "RoPE half", "RoPE interleaved")
    found = conformance.judge(module("named_faults").InterleavedAlways, features=features)
    assert set(found.causes) == {"RoPE pairing: interleaved, whatever is configured"}


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_other_designs_raise_no_alarm(module, dtype):
    for design in module("other_designs").DESIGNS:
        small = [c.feature.name for c in kernel_cases() if c.pairs < 30_000]
        found = conformance.judge(design, dtypes=(dtype,), features=small, profile="full")
        assert not found.failures, (design.__name__, found.failures[0])
        assert sum(check.verdict == "pass" for check in found.checks) > 40


@pytest.mark.no_shape_checks
def test_a_gradient_has_the_dtype_of_its_argument(module):
    """A float32 mask of 16-bit queries has a float32 gradient."""
    correct = module("kernels_with_gradients").correct
    found = conformance.judge(correct, arrays="torch", dtypes=("bfloat16",), features=("float mask",), profile="full")
    assert not found.failures
    assert any(check.quantity == "gradients" and check.verdict == "pass" for check in found.checks)


@pytest.mark.no_shape_checks
def test_three_lines_in_a_test_of_ones_own(module):
    faults = module("named_faults")
    conformance.assert_conforms(faults.kernel, features=["causal", "window"])
    with pytest.raises(AssertionError, match="causal window of W: counts neighbours: W \\+ 1 keys"):
        conformance.assert_conforms(faults.window_plus_one, features=["plain", "window"])
    with pytest.raises(ValueError, match="no feature is called 'cousal'"):
        conformance.assert_conforms(faults.kernel, features=["cousal"])
    with pytest.raises(NotATarget, match="limits: expected fields"):
        conformance.judge(faults.kernel, limits={"dtype": ["float32"]})

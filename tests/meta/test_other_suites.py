"""What other projects' tests catch of the planted bugs: the comparison is fair, and its known blind spots show."""

import pytest

from conformance.mutants import kernel
from conformance.mutants.other_suites import SUITES, catches, shown
from conformance.reference.kernel import ReferenceKernel


@pytest.mark.parametrize("suite", SUITES)
def test_correct_code_passes_every_test_that_is_shown(suite):
    asked, there = shown(suite)
    assert 9 <= asked <= there
    assert catches(suite, "kernel", (ReferenceKernel,)) == {"ReferenceKernel": ()}


def test_the_onnx_node_tests_are_taken_from_the_package():
    asked, there = shown("onnx")
    assert there == 93  # onnx 1.23.2
    assert asked >= 60  # the others have 16-bit inputs, windows, or a count of padded keys


def test_onnx_catches_tiled_heads_and_torchs_samples_do_not():
    assert catches("onnx", "kernel", (kernel.TiledHeads,))["TiledHeads"]
    assert catches("torch", "kernel", (kernel.TiledHeads,)) == {"TiledHeads": ()}


def test_jax_tests_its_window():
    found = catches("jax", "kernel", (kernel.WindowOneMore, kernel.SinkIgnored))
    assert found == {"WindowOneMore": ("causal, sliding_window",), "SinkIgnored": ()}

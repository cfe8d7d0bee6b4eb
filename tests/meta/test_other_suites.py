"""What other projects' tests catch of the mutants: the comparison is fair, and its known blind spots show."""

import pytest

from conformance.mutants import softmax
from conformance.mutants.heads import TiledHeads
from conformance.mutants.other_suites import SUITES, catches, usable
from conformance.mutants.positions import WindowOneMore
from conformance.reference.kernel import ReferenceKernel


@pytest.mark.parametrize("suite", SUITES)
def test_correct_code_passes_every_usable_test(suite):
    run, there = usable(suite)
    assert 9 <= run <= there
    assert catches(suite, "kernel", (ReferenceKernel,)) == {"ReferenceKernel": ()}


def test_the_onnx_node_tests_are_taken_from_the_package():
    run, there = usable("onnx")
    assert there == 93  # onnx 1.23.2
    assert run >= 60  # the others have 16-bit inputs, windows, or a count of padded keys


def test_onnx_catches_tiled_heads_and_torchs_samples_do_not():
    assert catches("onnx", "kernel", (TiledHeads,))["TiledHeads"]
    assert catches("torch", "kernel", (TiledHeads,)) == {"TiledHeads": ()}


def test_jax_tests_its_window():
    found = catches("jax", "kernel", (WindowOneMore, softmax.SinkIgnored))
    assert found == {"WindowOneMore": ("causal, sliding_window",), "SinkIgnored": ()}

"""Dialects: every named alternative, wrapped as somebody's attention, is reported as exactly itself."""

import json
from itertools import combinations, product
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gqa_numpy
from conformance.cases import inputs
from conformance.cases.compare import EPSILON, compare
from conformance.cases.table import KERNEL_ROWS, kernel_cases, layer_cases
from conformance.dialects.conventions import CONVENTION, CONVENTIONS, SPEC, named, single_dialects
from conformance.dialects.detect import OTHER, dialect_of, findings
from conformance.dialects.kernel import DialectKernel
from conformance.dialects.layer import DialectLayer
from conformance.targets import Backend, TargetClass, TargetFunction, find_target
from conformance.targets.frameworks import framework
from gqa import app
from gqa_spec import AttentionConfig

OF_LAYERS = {convention.name for convention in CONVENTIONS if convention.layer}
NUMPY = framework("numpy")


def kernel_that_speaks(dialect):
    return TargetFunction("somebody", NUMPY, DialectKernel(dialect))


def layer_that_speaks(dialect):
    class Somebody(DialectLayer):
        def __init__(self, *, dtype=None, rng=None, **settings):
            super().__init__(AttentionConfig(**settings), dialect)

    return TargetClass("somebody", NUMPY, Somebody)


@pytest.mark.parametrize("dialect", [SPEC, *single_dialects()], ids=named)
def test_every_dialect_is_reported_as_exactly_itself(dialect):
    of_layers = bool({name for name, _ in dialect} & OF_LAYERS)
    found = findings((layer_that_speaks if of_layers else kernel_that_speaks)(dialect))
    assert named(dialect_of(found)) == named(dialect)
    assert not [f for f in found if f.answer == OTHER or f.raised]
    told = {f.convention for f in found if f.agrees is not None}
    hidden = set().union(*(HIDES.get(pair, set()) for pair in dialect))
    assert told >= {c.name for c in CONVENTIONS if c.layer == of_layers} - hidden


# A target that ignores a mask has no rows that the mask empties.
HIDES = {
    ("boolean mask", "added as a number"): {"empty row, boolean", "poison"},
    ("boolean mask", "added as a number, but for padding"): {"empty row, boolean", "poison"},
    ("boolean mask", "ignored"): {"empty row, boolean", "poison", "mask of each row and head", "mask with causal"},
    ("floating mask", "read as boolean"): {"empty row, -inf"},
    ("floating mask", "ignored"): {"empty row, -inf"},
    ("offset", "ignored"): {"offset of each row"},
    ("given positions", "ignored"): {"RoPE angles"},
}


def test_a_layer_in_a_dialect_of_kernels_is_told_too():
    for convention in CONVENTIONS:
        if not convention.layer and convention.name not in ("returned weights", "dropout"):  # it draws none
            dialect = frozenset({(convention.name, convention.others[0].name)})
            assert named(dialect_of(findings(layer_that_speaks(dialect)))) == named(dialect)


APART = [
    ("head order", "scale"),
    ("alignment", "boolean mask"),
    ("causal window of W", "alignment"),
    ("given scale", "softcap order"),
    ("sinks", "head order"),
    ("boolean mask", "empty row, boolean"),
    ("floating mask", "boolean mask"),
    ("boolean mask", "poison"),
    ("16-bit scores", "scale"),
]


@pytest.mark.parametrize("names", APART, ids=" and ".join)
def test_two_alternatives_at_once_are_both_named(names):
    one, other = (CONVENTION[name] for name in names)
    for a, b in product(*([choice for choice in c.others if not choice.slip] for c in (one, other))):
        dialect = frozenset({(one.name, a.name), (other.name, b.name)})
        if other.name not in set().union(*(HIDES.get(pair, set()) for pair in dialect)):
            assert named(dialect_of(findings(kernel_that_speaks(dialect)))) == named(dialect)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_without_a_dialect_the_kernel_is_the_oracle(dtype):
    allowed = 1e-12 if dtype == "float64" else 4 * EPSILON[dtype]
    for case in kernel_cases():
        if case.grouping not in KERNEL_ROWS:
            continue
        call = inputs.kernel_call(case, dtype)
        expected = gqa_numpy.grouped_query_attention(*call.arguments, **call.keywords)
        for got, oracle in zip(DialectKernel()(*call.arguments, **call.keywords), expected, strict=True):
            assert compare(got, oracle, dtype, allowed).reason == "", case.name


def test_without_a_dialect_the_layer_is_the_oracle():
    for case in layer_cases():
        if case.grouping not in KERNEL_ROWS:
            continue
        call, weights = inputs.layer_call(case, "float64"), inputs.weights(case, "float64")
        oracle = Backend("numpy").layer(case.config, "float64")
        oracle.load(weights)
        spoken = DialectLayer(case.config).load_weights(weights)(*call.arguments, **call.keywords)
        for got, expected in zip(spoken, oracle(call), strict=True):
            assert compare(got, expected, "float64", 1e-12).reason == "", case.name


def test_every_choice_has_a_name_of_its_own_and_a_remedy():
    for convention in CONVENTIONS:
        assert len(set(convention.choices)) == len(convention.choices)
        assert all(choice.where and choice.remedy for choice in convention.others)
    assert all(not set(a) & set(b) for a, b in combinations(single_dialects(), 2))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_our_kernels_follow_the_specification(backend):
    target = TargetFunction(backend, framework(backend), Backend(backend).module.grouped_query_attention)
    found = findings(target)
    assert dialect_of(found) == SPEC
    assert all(f.agrees for f in found if f.convention not in OF_LAYERS)


# What was found by hand, in the versions that the constraints pin, before this tool was written.
BY_HAND = {
    "torch.sdpa": {("alignment", "top-left")},
    "torch.MultiheadAttention": {("boolean mask", "True is hidden"), ("returned weights", "after dropout")},
    "onnx.reference": {("alignment", "top-left"), ("causal window of W", "counts neighbours: W + 1 keys")},
    "onnxruntime.Attention": {("alignment", "top-left"), ("floating mask", "finfo.min is hidden")},
    "transformers.eager": {
        ("boolean mask", "added as a number"),
        ("empty row, -inf", "NaN"),
        ("16-bit scores", "rounded to 16 bit"),
        ("float64", "float32 inside"),
    },
    "jax.nn": {
        ("alignment", "top-left"),
        ("causal window of W", "counts neighbours: W + 1 keys"),
        ("window without causal", "counts neighbours: 2 W + 1 keys"),
        ("empty row, boolean", "mean of all values"),
        ("empty row, -inf", "NaN"),
        ("float64", "float32 inside"),
    },
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_was_found_by_hand_is_found_again(name):
    found = dialect_of(findings(find_target(name)))
    assert found >= BY_HAND[name]
    assert "head order" not in dict(found)  # all of them group contiguously


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.no_shape_checks
def test_the_command_names_what_differs_and_the_remedy(sample_targets):
    target = "numpy_kernels:tiled_top_left"
    result = CliRunner().invoke(app, ["dialect", target, "--json", "found.json"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    found = {f["convention"]: f for f in json.loads(Path("found.json").read_text())[target]}
    different = {name: f["answer"] for name, f in found.items() if f["agrees"] is False}
    assert different == {
        "head order": "tiled: n % K",
        "alignment": "top-left",
        "empty row, boolean": "NaN",
        "empty row, -inf": "NaN",
        "poison": "values leak",
        "16-bit scores": "rounded to 16 bit",
    }
    assert "remedy" in result.output
    assert "takes no softcap" in found["softcap order"]["unsupported"]


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("arguments", [["nowhere:thing"], ["torch.nothing"], []])
def test_no_target_is_one_sentence_and_exit_code_2(arguments):
    result = CliRunner().invoke(app, ["dialect", *arguments])
    assert result.exit_code == 2
    assert len(result.output.strip().split("\n")) == 1


@pytest.mark.no_shape_checks
def test_a_plain_class_is_given_keys_of_the_querys_width(sample_targets):
    """It takes no kv_dim, and its head order is told all the same."""
    result = CliRunner().invoke(app, ["dialect", "torch_layers:Tiled"])
    assert "head order                 tiled: n % K" in result.output

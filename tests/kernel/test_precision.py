"""16-bit inputs, with scores and softmax in float32, judged by SPEC 15; JAX with x64 off, as users have it."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.compare import compare, error_of
from conformance.cases.table import ALL_FEATURES, kernel_cases, layer_cases
from conformance.checks.backends import kernel_checks
from conformance.checks.expected import kernel_expected, layer_expected

KERNEL_CASES = {case.feature.name: case for case in kernel_cases() if case.grouping == ALL_FEATURES}
LAYER_CASES = {case.feature.name: case for case in layer_cases() if case.grouping == ALL_FEATURES}
LAYERS = ("square", "QK-norm rms_plus_one", "RoPE at given positions", "whole layer")
DTYPES = ("bfloat16", "float16")


pytestmark = pytest.mark.x64_off


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_kernel(backend, dtype, name):
    checks = list(kernel_checks(KERNEL_CASES[name], dtype, backend))
    assert [check.verdict for check in checks] == ["pass", "pass"], checks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer(backend, dtype, name):
    case = LAYER_CASES[name]
    call, weights = inputs.layer_call(case, dtype), inputs.weights(case, dtype)
    reference = layer_expected(case, dtype, weights, call)
    layer = backend.layer(case.config, dtype)
    layer.load(weights)
    for got, expected, allowed in zip(layer(call), reference.arrays, reference.allowed, strict=True):
        assert compare(got, expected, dtype, allowed).reason == ""


@pytest.mark.parametrize("dtype", [*DTYPES, "float32"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_asking_for_weights_never_changes_the_context(backend, dtype, name):
    """The fast path stays within the same bound, and its zeros in place."""
    call = inputs.kernel_call(KERNEL_CASES[name], dtype)
    reference = kernel_expected(dtype, call)
    keywords = {**call.keywords, "need_weights": False}
    context, weights = backend.attention(dataclasses.replace(call, keywords=keywords))
    assert weights is None
    assert compare(context, reference.arrays[0], dtype, reference.allowed[0]).reason == ""


@pytest.mark.parametrize("dtype", DTYPES)
def test_stages_are_kept_in_float32(backend, dtype):
    call = inputs.kernel_call(KERNEL_CASES["softcap"], dtype)
    to, back = backend.framework.to, backend.framework.back
    stages = backend.module.attention_stages(*(to(x) for x in call.arguments), **call.keywords)
    kinds = {name: str(back(x).dtype) for name, x in stages.items()}
    wide = ("scores", "capped", "masked", "weights", "logsumexp")
    assert kinds == dict.fromkeys(wide, "float32") | {"context": dtype}


def test_logits_are_not_rounded_to_16_bit(backend):
    """SPEC 7: rounding the logits of 512 keys to bfloat16 costs a context error of 0.08; keeping them, 0.01."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 2, 512, 64)).astype(inputs.DTYPES["bfloat16"]) for _ in range(3))
    call = inputs.Call(q * 4, k, v, None, {})
    context, _ = backend.attention(call)
    exact = kernel_expected("bfloat16", call).arrays[0]
    assert np.abs(context.astype(np.float64) - exact).max() < 0.02


def test_a_norm_weight_is_applied_before_the_one_rounding(backend):
    """SPEC 3, 7: bfloat16 1 + 15.8125 is 16.75 when the sum is rounded first, and 16.8125 in float32."""
    to, back = backend.framework.to, backend.framework.back
    kind = inputs.DTYPES["bfloat16"]
    x, weight = np.full((1, 1, 1, 2), 1.0, kind), np.full(2, 15.8125, kind)
    qk_norm = import_module(f"{backend.module.__name__}.norm").qk_norm
    normed = qk_norm(to(x), to(weight), "rms_plus_one", 0.0)
    assert back(normed).astype(float).ravel().tolist() == [float(np.array(16.8125, kind))] * 2


def test_angles_are_never_16_bit(backend):
    """SPEC 10: bfloat16 cannot hold position 4001."""
    to, back = backend.framework.to, backend.framework.back
    from gqa_spec import RopeConfig

    x = np.random.default_rng(0).normal(size=(1, 1, 2, 8)).astype(inputs.DTYPES["bfloat16"])
    positions = np.array([4000, 4001])
    rotate = backend.module.layer.rope.rotate
    got = back(rotate(to(x), to(positions), RopeConfig(), 5000)).astype(float)
    exact = back(rotate(to(x.astype(np.float32)), to(positions), RopeConfig(), 5000))
    assert error_of(got, exact) <= 2.0**-8

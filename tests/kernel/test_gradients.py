"""Gradients: NumPy's written by hand, torch's autograd and jax.grad agree, and central differences confirm them."""

import dataclasses

import numpy as np
import pytest

from conformance.cases import inputs
from conformance.cases.table import ALL_FEATURES, kernel_cases, layer_cases
from conformance.targets import Backend

KERNEL_CASES = {case.feature.name: case for case in kernel_cases() if case.grouping == ALL_FEATURES}
LAYER_CASES = {
    case.feature.name: case
    for case in layer_cases()
    if case.grouping == ALL_FEATURES and (case.feature.layer or case.feature.name in ("plain", "everything", "square"))
}
NUMPY = Backend("numpy").module


def numpy_kernel(call, d_context):
    return NUMPY.grouped_query_attention_vjp(*call.arguments, **call.keywords)[1](d_context)


def differentiable(call):
    """The names of the arguments that have a gradient."""
    names = ["query", "key", "value"]
    names += ["mask"] if call.mask is not None and call.mask.dtype != bool else []
    return names + (["sinks"] if "sinks" in call.keywords else [])


def torch_kernel(call, d_context):
    import torch

    backend = Backend("torch")
    to = backend.framework.to
    given = dict(zip(("query", "key", "value", "mask"), (to(x) for x in call.arguments), strict=True))
    given |= {name: to(x) for name, x in call.keywords.items()}
    wanted = [given[name].requires_grad_() for name in differentiable(call)]
    context, _ = backend.module.grouped_query_attention(**given, need_weights=call.keywords.get("need_weights", True))
    gradients = torch.autograd.grad(context, wanted, to(d_context))
    return {name: backend.framework.back(g) for name, g in zip(differentiable(call), gradients, strict=True)}


def jax_kernel(call, d_context):
    import jax

    backend = Backend("jax")
    to = backend.framework.to
    given = dict(zip(("query", "key", "value", "mask"), (to(x) for x in call.arguments), strict=True))
    given |= {name: to(x) for name, x in call.keywords.items()}
    wanted = {name: given.pop(name) for name in differentiable(call)}

    def loss(wanted):
        context, _ = backend.module.grouped_query_attention(**given, **wanted)
        return (context * d_context).sum()

    return {name: np.asarray(g) for name, g in jax.jit(jax.grad(loss))(wanted).items()}


def assert_same(got, expected, allowed=1e-11):
    """Relative to the largest gradient of all: that of a key's bias is 0 but for rounding, by softmax's invariance."""
    assert set(got) == set(expected)
    largest = max(np.abs(g).max() for g in expected.values())
    for name, g in got.items():
        assert g.shape == expected[name].shape, name
        assert np.isfinite(g).all(), name
        assert np.abs(g - expected[name]).max() <= allowed * largest, name


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_three_backends_agree_on_the_kernel(name):
    call = inputs.kernel_call(KERNEL_CASES[name], "float64")
    shape = (*call.query.shape[:3], call.value.shape[3])
    d_context = np.random.default_rng(0).normal(size=shape)
    expected = numpy_kernel(call, d_context)
    assert set(expected) == set(differentiable(call))
    assert_same(torch_kernel(call, d_context), expected)
    assert_same(jax_kernel(call, d_context), expected)


@pytest.mark.parametrize("name", ["plain", "float mask", "softcap", "sinks and window", "dropout", "everything"])
def test_central_differences_of_the_oracle(name):
    """Every gradient along a random direction."""
    call = inputs.kernel_call(KERNEL_CASES[name], "float64")
    rng, step = np.random.default_rng(1), 1e-6
    d_context = rng.normal(size=(*call.query.shape[:3], call.value.shape[3]))
    gradients = numpy_kernel(call, d_context)
    given = dict(zip(("query", "key", "value", "mask"), call.arguments, strict=True)) | call.keywords
    for argument, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        ahead, behind = (
            (
                NUMPY.grouped_query_attention(**given | {argument: given[argument] + sign * step * direction})[0]
                * d_context
            ).sum()
            for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum(), rel=1e-6), argument


@pytest.mark.parametrize("name", ["poison", "poison and softcap"])
def test_a_poisoned_key_gets_no_gradient_and_sends_none(name):
    call = inputs.kernel_call(KERNEL_CASES[name], "float64")
    clean = dataclasses.replace(call, key=np.nan_to_num(call.key, posinf=7), value=np.nan_to_num(call.value, posinf=7))
    d_context = np.random.default_rng(0).normal(size=(*call.query.shape[:3], call.value.shape[3]))
    hidden = np.broadcast_to(~call.mask[:, :, 0, :, None], call.key.shape)
    for gradients in (numpy_kernel, torch_kernel, jax_kernel):
        poisoned, expected = gradients(call, d_context), gradients(clean, d_context)
        assert not poisoned["key"][hidden].any()
        assert_same(poisoned, expected, allowed=0)


def test_an_empty_row_sends_no_gradient_even_if_its_query_is_nan():
    call = inputs.kernel_call(KERNEL_CASES["empty rows and sinks"], "float64")
    empty = ~call.mask.any(-1)[..., None]
    query = np.where(empty, np.nan, call.query)
    d_context = np.random.default_rng(0).normal(size=(*call.query.shape[:3], call.value.shape[3]))
    for gradients in (numpy_kernel, torch_kernel, jax_kernel):
        got = gradients(dataclasses.replace(call, query=query), d_context)
        assert not got["query"][np.broadcast_to(empty, query.shape)].any()
        assert_same(got, gradients(call, d_context), allowed=0)


def numpy_layer(case, call, weights, d_output):
    layer = Backend("numpy").layer(case.config, "float64").module.load_weights(weights)
    gradients = layer.vjp(*call.arguments, **call.keywords)[1](d_output)
    for name, default, given in (("value", "key", call.value), ("key", "query", call.key)):
        if given is None:
            gradients[default] = gradients[default] + gradients.pop(name)
    return gradients


def torch_layer(case, call, weights, d_output):
    import torch

    layer = Backend("torch").layer(case.config, "float64")
    layer.load(weights)
    to, back = layer.framework.to, layer.framework.back
    arguments = [to(x) for x in call.arguments]
    named = dict(zip(("query", "key", "value", "mask"), arguments, strict=True))
    wanted = {name: named[name].requires_grad_() for name in layer_inputs(call)}
    wanted |= dict(layer.module.named_parameters())
    output, _ = layer.module(*arguments, **{name: to(x) for name, x in call.keywords.items()})
    gradients = torch.autograd.grad(output, list(wanted.values()), to(d_output))
    return {name: back(g) for name, g in zip(wanted, gradients, strict=True)}


def jax_layer(case, call, weights, d_output):
    from flax import nnx

    layer = Backend("jax").layer(case.config, "float64")
    layer.load(weights)
    to = layer.framework.to
    named = dict(zip(("query", "key", "value", "mask"), (to(x) for x in call.arguments), strict=True))
    wanted = {name: named.pop(name) for name in layer_inputs(call)}
    keywords = {name: to(x) for name, x in call.keywords.items()}

    @nnx.jit
    def gradients(module, wanted):
        def loss(module, wanted):
            return (module(**wanted, **named, **keywords)[0] * d_output).sum()

        return nnx.grad(loss, argnums=(0, 1))(module, wanted)

    parameters, arguments = gradients(layer.module, wanted)
    found = {name: np.asarray(g) for name, g in arguments.items()}
    for path, variable in nnx.to_flat_state(parameters):
        name = ".".join(path).replace("kernel", "weight")
        g = np.asarray(variable[...])
        found[name] = g.T if path[-1] == "kernel" else g
    return found


def layer_inputs(call):
    given = dict(zip(("query", "key", "value", "mask"), call.arguments, strict=True))
    return [name for name, x in given.items() if x is not None and x.dtype != bool]


@pytest.mark.parametrize("name", LAYER_CASES)
def test_three_backends_agree_on_the_layer(name):
    case = LAYER_CASES[name]
    call, weights = inputs.layer_call(case, "float64"), inputs.weights(case, "float64")
    d_output = np.random.default_rng(0).normal(size=call.query.shape)
    expected = numpy_layer(case, call, weights, d_output)
    assert set(expected) == {*layer_inputs(call), *weights}
    assert_same(torch_layer(case, call, weights, d_output), expected)
    assert_same(jax_layer(case, call, weights, d_output), expected)


def test_torch_counts_a_tensor_that_is_query_key_and_value_once_where_its_gradient_is_differentiated():
    import torch

    from gqa_torch import grouped_query_attention

    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 5, 3))).requires_grad_()
    loss = grouped_query_attention(x, x, x, need_weights=False)[0].square().sum()
    expected, found = (
        torch.autograd.grad(loss, x, retain_graph=True, create_graph=twice)[0] for twice in (False, True)
    )
    torch.testing.assert_close(found, expected)

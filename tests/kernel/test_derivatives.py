"""Derivatives beyond a gradient, of calls that need no weights: PyTorch's fused attention alone has none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gqa_spec import RopeConfig
from gqa_torch import GroupQueryAttention, grouped_query_attention

FEATURES: dict[str, dict[str, Any]] = {
    "nothing hidden": {},
    "causal": {"causal": True},
    "causal with an offset": {"causal": True, "offset": 2},
    "window": {"causal": True, "window": 3},
    "window and chunk": {"causal": True, "window": 3, "chunk": 4},
    "softcap": {"causal": True, "softcap": 2.0},
    "sinks": {"causal": True, "sinks": torch.tensor([0.5, -1.0, 0.2, 1.0], dtype=torch.float64)},
    "mask with an empty row": {"mask": torch.arange(23) % 3 > torch.arange(23)[:, None] % 4},
}
FEW, MANY = 5, 17  # queries: packed into groups up to 16, PyTorch's fused attention beyond
NAMES = pytest.mark.parametrize("name", FEATURES)
LENGTHS = pytest.mark.parametrize("T", [FEW, MANY])


def inputs(T: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = (1, 4, T, 3), (1, 2, T, 3), (1, 2, T, 3)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


def context_of(name: str, T: int, *, need_weights: bool = False) -> Callable[..., Tensor]:
    settings = dict(FEATURES[name])
    mask = settings.pop("mask", None)
    mask = None if mask is None else mask[:T, :T]
    return lambda *given: grouped_query_attention(*given, mask, **settings, need_weights=need_weights)[0]


@NAMES
@LENGTHS
def test_a_gradient_has_the_gradient_that_central_differences_give(name: str, T: int) -> None:
    given = [x.requires_grad_() for x in inputs(T)]
    assert torch.autograd.gradgradcheck(context_of(name, T), given, fast_mode=True)


@NAMES
@LENGTHS
def test_the_second_derivative_is_that_of_the_plain_kernel(name: str, T: int) -> None:
    found = []
    for need_weights in (False, True):
        given = [x.requires_grad_() for x in inputs(T)]
        context = context_of(name, T, need_weights=need_weights)(*given)
        first = torch.autograd.grad(context.sin().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(x.square().sum() for x in first), given))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-12, rtol=1e-12)
        assert plain.abs().max() > 1e-3


@NAMES
@LENGTHS
def test_forward_mode_of_torch_func_and_of_dual_numbers(name: str, T: int) -> None:
    given, tangents = inputs(T), tuple(x.flip(2) for x in inputs(T))
    _, expected = torch.func.jvp(context_of(name, T, need_weights=True), given, tangents)
    _, found = torch.func.jvp(context_of(name, T), given, tangents)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, tangent) for x, tangent in zip(given, tangents, strict=True)]
        dual = forward_ad.unpack_dual(context_of(name, T)(*duals)).tangent
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(dual, expected, atol=1e-12, rtol=1e-12)


@NAMES
def test_a_hessian(name: str) -> None:
    query, key, value = inputs(FEW)

    def hessian(need_weights: bool) -> Any:
        function = context_of(name, FEW, need_weights=need_weights)
        return torch.func.hessian(lambda q, k: function(q, k, value).sin().sum(), argnums=(0, 1))(query, key)

    for found, expected in zip(hessian(False), hessian(True), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@LENGTHS
def test_a_layer_with_a_penalty_on_its_gradient(T: int) -> None:
    """As gradient penalties and influence functions do: the gradient's norm is trained on."""
    x = torch.randn(2, T, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = GroupQueryAttention(24, 6, 2, causal=True, rope=RopeConfig(), dtype=torch.float64)
    found = []
    for need_weights in (False, True):
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            layer(given, need_weights=need_weights)[0].sin().sum(), given, create_graph=True
        )
        found.append(torch.autograd.grad(gradient.square().sum(), list(layer.parameters())))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-11, rtol=1e-11)


@LENGTHS
def test_a_graph_that_is_retained_gives_its_gradient_again(T: int) -> None:
    given = [x.requires_grad_() for x in inputs(T)]
    loss = context_of("causal", T)(*given).sin().sum()
    first = torch.autograd.grad(loss, given, retain_graph=True)
    for again in (torch.autograd.grad(loss, given, retain_graph=True), torch.autograd.grad(loss, given)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, given)

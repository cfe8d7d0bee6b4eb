"""Derivatives that PyTorch's fused attention lacks: forward mode, and a gradient's own gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor as Array
from torch.autograd import forward_ad

# query, key, value, visible -> context
Kernel = Callable[[Array, Array, Array, Array | None], Array]


def beyond_gradients(*arrays: Array) -> bool:
    """Whether more than a plain gradient may be wanted: under forward mode and under the transforms of torch.func."""
    if torch.compiler.is_compiling():
        return False
    unpacked: Any = forward_ad.unpack_dual  # which torch leaves untyped
    dual = any(unpacked(x).tangent is not None for x in arrays)
    return dual or torch._C._are_functorch_transforms_active()  # there is no public name


def twice_differentiable(
    kernel: Kernel,
    plain: Kernel,
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
) -> Float[Array, "B N T Hv"]:
    """`kernel`, whose gradient has no derivative: where a gradient is to be differentiated, it is that of `plain`."""
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if not needs_grad or torch.compiler.is_compiling():
        return kernel(query, key, value, visible)
    apply: Any = _TwiceDifferentiable.apply  # untyped too
    context: Array = apply(kernel, plain, visible, query, key, value)
    return context


class _TwiceDifferentiable(torch.autograd.Function):
    """Keeps the kernel's own graph for its first gradient, and the inputs for any other."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, plain: Kernel, visible: Array | None, *inputs: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        ctx.save_for_backward(*inputs)
        ctx.kernel, ctx.plain, ctx.visible = kernel, plain, visible
        ctx.graph = _graph(kernel, inputs, visible)
        return ctx.graph[1].detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Array, "..."]) -> tuple[Array | None, ...]:
        inputs, differentiated = ctx.saved_tensors, torch.is_grad_enabled()
        if differentiated:
            own = [x.view_as(x) for x in inputs]  # one tensor may be query, key and value
            graph = own, ctx.plain(*own, ctx.visible)
        else:  # the graph is freed by its use, as autograd frees others; with retain_graph it is made again
            graph = ctx.graph or _graph(ctx.kernel, inputs, ctx.visible)
            ctx.graph = None
        own, context = graph
        wanted = [x for x, needed in zip(own, ctx.needs_input_grad[3:], strict=True) if needed]
        found = iter(torch.autograd.grad(context, wanted, gradients, create_graph=differentiated))
        return None, None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[3:])


def _graph(kernel: Kernel, inputs: tuple[Array, ...], visible: Array | None) -> tuple[list[Array], Array]:
    """The kernel on copies of the inputs that have no history, and these."""
    own = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    with torch.enable_grad():
        return own, kernel(own[0], own[1], own[2], visible)

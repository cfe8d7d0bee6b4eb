"""The feed-forward of a block, of a dense layer or of one expert, and its activations. SPEC 18."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from gqa_spec import ExpertsConfig
from gqa_torch.precision import widened


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))); between the maps rounded once.

    width: D. size: F, inside. kind: of the activation. experts: where it is one of them.
    """

    def __init__(
        self,
        width: int,
        size: int,
        kind: str,
        *,
        gated: bool,
        bias: bool,
        experts: ExpertsConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.kind, self.experts = kind, experts
        self.gate = nn.Linear(width, size, bias=bias, **options) if gated else None
        self.up = nn.Linear(width, size, bias=bias, **options)
        self.down = nn.Linear(size, width, bias=bias, **options)

    def forward(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        up = self.up(x)
        if self.gate is None:
            return self.down(activation(widened(up), self.kind).to(up.dtype))
        hidden = gated_product(widened(self.gate(x)), widened(up), self.kind, self.experts)
        return self.down(hidden.to(up.dtype))


def gated_product(gate: Array, up: Array, kind: str, experts: ExpertsConfig | None = None) -> Array:
    """activation(gate) * up, or gpt-oss's clamped form of it, in their dtype."""
    if experts is None or experts.swiglu_limit is None or experts.swiglu_alpha is None:
        return activation(gate, kind) * up
    gate, up = gate.clamp(max=experts.swiglu_limit), up.clamp(-experts.swiglu_limit, experts.swiglu_limit)
    return (up + 1) * (gate * (experts.swiglu_alpha * gate).sigmoid())


def activation(x: Array, kind: str) -> Array:
    """In x's dtype: SiLU, ReLU squared, or GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), exact or by its tanh."""
    if kind == "silu":
        return functional.silu(x)
    if kind == "relu2":
        return functional.relu(x).square()
    return functional.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

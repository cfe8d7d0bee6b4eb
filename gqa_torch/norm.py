"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv 1607.06450). SPEC 11, 18."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from gqa_torch.precision import widened


def rms_norm(
    x: Float[Array, "*axes W"], weight: Float[Array, "W"], eps: float, *, plus_one: bool = False
) -> Float[Array, "*axes W"]:
    """x / rms(x) * w, or * (1 + w) as Gemma stores it; in float32 for 16-bit inputs, rounded once at the end."""
    wide, scale = widened(x), widened(weight)
    normed = wide * torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + eps)
    return (normed * (scale + 1 if plus_one else scale)).to(x.dtype)


def layer_norm(
    x: Float[Array, "*axes W"],
    weight: Float[Array, "W"],
    bias: Float[Array, "W"] | None,
    eps: float,
    *,
    plus_one: bool = False,
) -> Float[Array, "*axes W"]:
    """(x - mean) / sqrt(variance + eps) * w + b, or * (1 + w) as Nemotron stores it; rounded as rms_norm is."""
    scale, wide = widened(weight), None if bias is None else widened(bias)
    return functional.layer_norm(widened(x), weight.shape, scale + 1 if plus_one else scale, wide, eps).to(x.dtype)


def qk_norm(x: Float[Array, "B N T H"], weight: Float[Array, "W"], kind: str, eps: float) -> Float[Array, "B N T H"]:
    """`rms` and `rms_plus_one` norm each head alone; `rms_full` norms all heads of a token as one vector."""
    if kind != "rms_full":
        return rms_norm(x, weight, eps, plus_one=kind == "rms_plus_one")
    B, N, T, H = x.shape
    flat = x.transpose(1, 2).reshape(B, T, N * H)
    return rms_norm(flat, weight, eps).reshape(B, T, N, H).transpose(1, 2)


class Weight(nn.Module):
    """A module with one `weight`, so that it has its canonical name; `initial` is the identity."""

    def __init__(self, weight: nn.Parameter, initial: float) -> None:
        super().__init__()
        self.weight, self.initial = weight, initial

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(self.initial)

"""One block of a model: norm, attention, residual, norm, feed-forward, residual. SPEC 18."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor as Array
from torch import nn

from gqa_spec import ModelConfig
from gqa_torch.decoding import Extension
from gqa_torch.experts import Experts
from gqa_torch.feed_forward import FeedForward
from gqa_torch.layer import GroupedQueryAttention
from gqa_torch.norm import layer_norm, rms_norm
from gqa_torch.precision import widened


class Block(nn.Module):
    """Layer `number` of a model. `ModelConfig` says which norms there are and what the feed-forward is."""

    def __init__(self, config: ModelConfig, number: int, **options: Any) -> None:
        super().__init__()
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        before_feed_forward = before and config.parallel != "shared_norm"
        self.parallel, self.residual_scale = config.parallel, config.residual_scale
        self.attention_norm = Norm(config, **options) if before else None
        self.attention = GroupedQueryAttention.from_config(config.attention[number], **options)
        self.attention_post_norm = Norm(config, **options) if after else None
        self.feed_forward_norm = Norm(config, **options) if before_feed_forward else None
        experts = config.experts_of(number)
        if experts is not None:
            self.feed_forward: nn.Module = Experts(config, experts, **options)
        else:
            widths, bias = (config.hidden_size, config.feed_forward_size), config.feed_forward_bias
            self.feed_forward = FeedForward(*widths, config.activation, gated=config.gated, bias=bias, **options)
        self.feed_forward_post_norm = Norm(config, **options) if after else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Array, "B T D"],
        mask: Array | None = None,
        *,
        positions: Array | None = None,
        rope_length: int | None = None,
        extension: Extension | None = None,
    ) -> Float[Array, "B T D"]:
        """The block's result. extension: as for `GroupedQueryAttention`, and then without dropout."""
        settings = {"positions": positions, "rope_length": rope_length, "need_weights": False, "extension": extension}
        dropout = self.dropout if extension is None else None
        normed = applied(self.attention_norm, x)
        attended, _ = self.attention(normed, mask=mask, **settings)
        attended = self._added(applied(self.attention_post_norm, attended), dropout)
        if self.parallel is not None:
            read = normed if self.parallel == "shared_norm" else applied(self.feed_forward_norm, x)
            return x + attended + self._added(self.feed_forward(read), dropout)
        x = x + attended
        fed = self.feed_forward(applied(self.feed_forward_norm, x))
        return x + self._added(applied(self.feed_forward_post_norm, fed), dropout)

    def _added(self, x: Array, dropout: nn.Module | None) -> Array:
        """What a sublayer adds: its result times `residual_scale`, rounded once, with dropout."""
        return applied(dropout, scaled(x, self.residual_scale))


class Norm(nn.Module):
    """The model's norm: RMS norm or LayerNorm, times w or 1 + w, the latter with or without bias."""

    def __init__(self, config: ModelConfig, **options: Any) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.hidden_size, **options))
        self.bias = nn.Parameter(torch.empty(config.hidden_size, **options)) if config.norm_bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The identity (SPEC 17)."""
        self.weight.fill_(0.0 if self.config.norm.endswith("plus_one") else 1.0)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        plus_one, eps = self.config.norm.endswith("plus_one"), self.config.norm_eps
        if self.config.norm.startswith("layer"):
            return layer_norm(x, self.weight, self.bias, eps, plus_one=plus_one)
        return rms_norm(x, self.weight, eps, plus_one=plus_one)


def scaled(x: Array, factor: float) -> Array:
    """x * factor in the compute dtype, rounded once."""
    return x if factor == 1 else (widened(x) * factor).to(x.dtype)


def applied(module: nn.Module | None, x: Array) -> Array:
    """The module's result, or x where the model has no such module."""
    return x if module is None else module(x)

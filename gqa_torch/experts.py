"""A mixture of experts: a router sends each token to a few of many feed-forwards. SPEC 20."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor as Array
from torch import nn

from gqa_spec import ExpertsConfig, ModelConfig
from gqa_torch.decoding import known
from gqa_torch.feed_forward import FeedForward
from gqa_torch.precision import widened


class Experts(nn.Module):
    """The sum of each token's experts, times their weights, and of the shared feed-forward; rounded once.

    Eager code gives each expert its own tokens alone. Compiled and transformed code, for which no shape may depend on
    values, gives each expert all of them.
    """

    def __init__(self, model: ModelConfig, config: ExpertsConfig, **options: Any) -> None:
        super().__init__()
        width, kind, bias = model.hidden_size, model.activation, config.bias
        self.config = config
        self.router = nn.Linear(width, config.num_experts, bias=bias, **options)
        self.experts: Any = nn.ModuleList(
            FeedForward(width, config.expert_size, kind, gated=True, bias=bias, experts=config, **options)
            for _ in range(config.num_experts)
        )
        shared = config.shared_size
        self.shared = FeedForward(width, shared, kind, gated=True, bias=False, **options) if shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False, **options) if config.shared_gate else None

    def forward(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        tokens = x.flatten(0, -2)
        logits = self.router(tokens)
        chosen, weights = route(logits, self.config)
        numbers = torch.arange(self.config.num_experts, device=x.device)
        present = known((chosen[..., None] == numbers).flatten(0, -2).any(dim=0))
        if present is None:
            total = self._of_all(tokens, chosen, weights)
        else:
            total = self._of_chosen(tokens, chosen, weights, [n for n, has_tokens in enumerate(present) if has_tokens])
        if self.shared is not None:
            total = total + widened(self._shared(tokens, self.shared))
        return total.to(logits.dtype).reshape(x.shape)

    def _of_chosen(self, tokens: Array, chosen: Array, weights: Array, present: list[int]) -> Float[Array, "tokens D"]:
        total = weights.new_zeros(tokens.shape)
        for number in present:
            rows, places = torch.where(chosen == number)
            result = widened(self.experts[number](tokens[rows]))
            total = total.index_add(0, rows, weights[rows, places, None] * result)
        return total

    def _of_all(self, tokens: Array, chosen: Array, weights: Array) -> Float[Array, "tokens D"]:
        total = weights.new_zeros(()).expand(tokens.shape)
        for number, expert in enumerate(self.experts):
            here = chosen == number
            weight = torch.where(here, weights, 0).sum(dim=-1, keepdim=True)
            total = total + torch.where(here.any(dim=-1, keepdim=True), weight * widened(expert(tokens)), 0)
        return total

    def _shared(self, tokens: Array, shared: nn.Module) -> Float[Array, "tokens D"]:
        result = shared(tokens)
        if self.shared_gate is None:
            return result
        return (widened(result) * widened(self.shared_gate(tokens)).sigmoid()).to(result.dtype)


def route(
    logits: Float[Array, "tokens X"], config: ExpertsConfig
) -> tuple[Integer[Array, "tokens chosen"], Float[Array, "tokens chosen"]]:
    """The experts of each token, by falling logit, of equal ones the first; and their weights in the compute dtype."""
    wide = widened(logits)
    falling, order = wide.sort(dim=-1, descending=True, stable=True)  # topk leaves the order of equal ones open
    chosen, of_chosen = (x[..., : config.num_experts_per_token] for x in (order, falling))
    if config.normalise:
        return chosen, of_chosen.softmax(dim=-1)
    return chosen, wide.softmax(dim=-1).gather(-1, chosen)

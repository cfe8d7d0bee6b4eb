"""The settings of a mixture of experts in the place of a model's feed-forward, and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from gqa_spec import checks


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A router that sends each token to a few of many gated feed-forwards (SPEC 20).

    Args:
        num_experts: X, the number of experts.
        num_experts_per_token: How many of them a token goes to: those with the largest router logits, of equal ones
            those with the smallest numbers.
        expert_size: Fx, the width inside each expert.
        normalise: Whether the weights of a token's experts sum to 1, the softmax over their logits alone, instead of
            being their parts of the softmax over all logits.
        bias: Whether the router and the maps of the experts have a bias.
        swiglu_limit: Experts compute (clip(up) + 1) * gate * sigmoid(swiglu_alpha * gate) instead of
            activation(gate) * up, with the gate at most this limit and up between its negative and it (gpt-oss); None
            for not.
        swiglu_alpha: The factor inside that sigmoid.
        shared_size: Fs, the width inside a feed-forward that all tokens go to as well; None for none.
        shared_gate: Whether its result is multiplied by sigmoid(shared_gate(x)), one number for each token.
        dense_layers: The layers that have the model's plain feed-forward instead.

    Raises:
        ValueError: For a number out of range or settings that contradict each other.
        TypeError: For the wrong kind of value.
    """

    num_experts: int
    num_experts_per_token: int
    expert_size: int
    normalise: bool = True
    bias: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float | None = None
    shared_size: int | None = None
    shared_gate: bool = False
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))
        for layer in self.dense_layers:
            checks.integer("dense_layers", layer, at_least=0)
        checks.integer("num_experts", self.num_experts, symbol="X", at_least=1)
        checks.integer("num_experts_per_token", self.num_experts_per_token, at_least=1)
        checks.experts_per_token(self.num_experts_per_token, self.num_experts)
        checks.integer("expert_size", self.expert_size, symbol="Fx", at_least=1)
        for name in ("normalise", "bias", "shared_gate"):
            checks.boolean(name, getattr(self, name))
        checks.clamped_swiglu(self.swiglu_limit, self.swiglu_alpha)
        if self.shared_size is not None:
            checks.integer("shared_size", self.shared_size, symbol="Fs", at_least=1)
        checks.shared_gate(self.shared_gate, self.shared_size)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: For a number out of range or settings that contradict each other.
            TypeError: For an unknown name or the wrong kind of value.
        """
        return cls(**stored)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "dense_layers": list(self.dense_layers)}

    @property
    def axes(self) -> dict[str, int]:
        return {"X": self.num_experts, "Fx": self.expert_size, "Fs": self.shared_size or 0}


def expert_shapes(config: ExpertsConfig) -> dict[str, str]:
    """Name under `feed_forward.` -> symbolic shape, in canonical order.

    Weights of the same kind are neighbours, so that a file with one tensor for all experts is read once for each.
    """
    numbers = range(config.num_experts)
    table = {"router.weight": "X, D", **({"router.bias": "X,"} if config.bias else {})}
    for kind, wide, narrow in (("weight", "Fx, D", "D, Fx"), ("bias", "Fx,", "D,")):
        if kind == "weight" or config.bias:
            table |= {f"experts.{number}.{name}.{kind}": wide for number in numbers for name in ("gate", "up")}
            table |= {f"experts.{number}.down.{kind}": narrow for number in numbers}
    if config.shared_size is not None:
        table |= {"shared.gate.weight": "Fs, D", "shared.up.weight": "Fs, D", "shared.down.weight": "D, Fs"}
    if config.shared_gate:
        table["shared_gate.weight"] = "1, D"
    return table

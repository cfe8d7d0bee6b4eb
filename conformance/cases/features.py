"""What a case switches on: one `Feature` for each, with the clause of SPEC.md and the fault that it guards against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MaskKind = Literal[
    "bool (T, S)", "bool per row", "bool per head", "bool (B, N, T, S)", "bool (B, 1, T, 1)", "padding",
    "lengths at block edges", "whole blocks hidden", "float (T, S)", "float per head", "float (B, N, 1, S)",
    "float16 per row", "float with -inf", "finfo.min", "empty rows", "poisoned padding", "poisoned -inf",
    "poisoned per head", "float (B, 1, T, 1)",
]  # fmt: skip
OffsetKind = Literal["zero", "per row", "past the end", "before the start"]
ValueKind = Literal[
    "large scores", "products past 65504", "scores below -1e9", "equal scores", "scores that grow", "scores that fall",
    "one key for each query", "weights that underflow", "tiny inputs", "large values", "NaN in a visible value",
]  # fmt: skip
Given = Literal["query, key, value", "query, key", "query, value"]


@dataclass(frozen=True)
class Sizes:
    """Every axis of a case that has sizes of its own."""

    B: int
    N: int
    K: int
    T: int
    S: int
    H: int
    Hv: int


@dataclass(frozen=True)
class Feature:
    """What a case switches on, and which fault it guards against.

    square: head sizes and widths at their defaults and key = query, as a plain layer has them; otherwise every axis
    differs. long_queries: more queries than keys. layer: the kernel alone cannot show it. positions: those that are
    given to a layer. given: the inputs of a layer. gradients: are compared too. sizes: instead of the grouping's.
    """

    name: str
    clause: int
    guards: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskKind | None = None
    offset: OffsetKind | None = None
    positions: Literal["both", "queries"] | None = None
    rope_length: int | None = None
    dropout: bool = False
    square: bool = False
    long_queries: bool = False
    layer: bool = False
    values: ValueKind | None = None
    given: Given = "query, key, value"
    gradients: bool = False
    sizes: Sizes | None = None

    @property
    def kernel_only(self) -> bool:
        """Whether a layer's inputs cannot bring it about."""
        return self.dropout or self.values is not None

    @property
    def past_float16(self) -> bool:
        """Whether its inputs are past what float16 holds."""
        return self.values in ("scores below -1e9", "large values")

    @property
    def poison(self) -> bool:
        return self.mask in ("poisoned padding", "poisoned -inf", "poisoned per head")

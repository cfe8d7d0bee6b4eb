"""How families store the experts of a layer: a tensor for each map of each expert, or one tensor for all experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from gqa_spec.experts_config import ExpertsConfig

Array = np.ndarray
Shape = tuple[int, ...]
MAPS = ("gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One tensor (X, ...) of all experts.

    maps: which of an expert's are in it, the rows of one after those of the other. kind: "weight" or "bias".
    interleaved: the rows alternate instead. transposed: the rows are its last axis.
    """

    maps: tuple[str, ...]
    kind: str = "weight"
    interleaved: bool = False
    transposed: bool = False

    def names(self, experts: int) -> list[str]:
        """The names, under `experts.`, of the weights in it."""
        return [f"{number}.{name}.{self.kind}" for number in range(experts) for name in self.maps]

    def shape(self, config: ExpertsConfig, width: int) -> Shape:
        rows, columns = (width, config.expert_size) if self.maps == ("down",) else (config.expert_size, width)
        rows *= len(self.maps)
        if self.kind == "bias":
            return (config.num_experts, rows)
        return (config.num_experts, *((columns, rows) if self.transposed else (rows, columns)))

    def split(self, array: Array) -> dict[str, Array]:
        """The weights in it, by `names`."""
        array = array.swapaxes(1, 2) if self.transposed else array
        count, size = len(self.maps), array.shape[1] // len(self.maps)
        slices = [slice(i, None, count) if self.interleaved else slice(i * size, (i + 1) * size) for i in range(count)]
        pieces = [array[number, rows] for number in range(len(array)) for rows in slices]
        return dict(zip(self.names(len(array)), pieces, strict=True))

    def join(self, weights: Mapping[str, Array]) -> Array:
        """The inverse of `split`."""
        experts = len(weights) // len(self.maps)
        maps = [np.stack([weights[f"{number}.{name}.{self.kind}"] for number in range(experts)]) for name in self.maps]
        if self.interleaved:
            array = np.stack(maps, axis=2).reshape(experts, -1, *maps[0].shape[2:])
        else:
            array = np.concatenate(maps, axis=1)
        return array.swapaxes(1, 2) if self.transposed else array


@dataclass(frozen=True, kw_only=True)
class ExpertTensors:
    """One spelling. router: the name of its module in a layer. each: map -> the name of its module there, with {} for
    the expert's number. stacks: tensor of a layer -> what is in it.
    """

    router: str
    each: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The name of one tensor of a layer, by which a file of this spelling is recognised."""
        return next(iter(self.stacks), "") or f"{next(iter(self.each.values())).format(0)}.weight"

    def holding(self, name: str, kind: str) -> tuple[str, Stack] | None:
        """The stack that has a map's weights or biases."""
        return next(((t, stack) for t, stack in self.stacks.items() if name in stack.maps and stack.kind == kind), None)


def spelled(spellings: tuple[ExpertTensors, ...], tensors: Iterable[str]) -> tuple[ExpertTensors, ...]:
    """The spelling alone that the tensors of a file have; all, the first of which is written, where none is found."""
    names = list(tensors)
    for spelling in spellings:
        if any(name.endswith(f".{spelling.first}") for name in names):
            return (spelling,)
    return spellings

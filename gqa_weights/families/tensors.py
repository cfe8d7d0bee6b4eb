"""Where a family keeps the tensors of a whole model: a table of module names, and each stored tensor made from it.

What is converted together is one stored tensor and the canonical ones in it, one unless the family fuses them. How
attention is stored is a table of `gqa_weights.layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gqa_spec.config import AttentionConfig, weight_shapes
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights.families.expert_tensors import MAPS, ExpertTensors, spelled
from gqa_weights.layouts.rules import Layout, canonical_tensor, foreign_shapes, foreign_tensor, sources
from gqa_weights.layouts.tables import LAYOUTS

Array = np.ndarray
Shape = tuple[int, ...]
ROUTER = "feed_forward.router"
EXPERTS = "feed_forward.experts."  # of the names of experts in a block
CANONICAL = "canonical"


@dataclass(frozen=True)
class TensorNames:
    """A family's names of modules, without the `.weight` and `.bias` that both sides call the same.

    ends: embed, norm and head. block: how the names of layer {} start; attention: how those of its attention go on, in
    `layout`. modules: the other modules of a layer. fused: modules of the family whose rows are those of several of
    ours. one_plus_norms: norm weights stored as 1 + w, outside of attention. unused: patterns of tensors that hold no
    weights. tied_head: the name under which files may repeat a tied embedding. shared_norm: the norm
    of a parallel block that has one alone, where its name is another. experts: the spellings of those of a layer, of
    which the first is written.
    """

    ends: Mapping[str, str]
    block: str
    attention: str
    modules: Mapping[str, str]
    layout: str
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    one_plus_norms: bool = False
    unused: tuple[str, ...] = ()
    tied_head: str = ""
    shared_norm: str = ""
    experts: tuple[ExpertTensors, ...] = ()

    def spelled(self, tensors: Iterable[str]) -> TensorNames:
        """These names, with the spelling of experts alone that a file has."""
        return replace(self, experts=spelled(self.experts, tensors)) if self.experts else self

    @property
    def table(self) -> Layout:
        return LAYOUTS[self.layout]

    def unmapped_modules(self, config: ModelConfig) -> list[str]:
        """The modules of a model, attention apart, that this family has no tensors for."""
        places = {*self.ends, *self.modules, *(module for modules in self.fused.values() for module in modules)}
        places |= {ROUTER, *(f"{EXPERTS}{{}}.{name}" for name in MAPS)} if self.experts else set()
        inside = [re.sub(r"^blocks\.\d+\.", "", name) for name in model_weight_shapes(config)]
        inside = [re.sub(rf"^{EXPERTS}\d+", f"{EXPERTS}{{}}", name) for name in inside]
        modules = dict.fromkeys(name.rpartition(".")[0] for name in inside if not name.startswith("attention."))
        return [module for module in modules if module not in places]

    @property
    def prefix(self) -> str:
        """What every name but the head's starts with, such as "model."."""
        layers = self.block.index("{}")
        return self.block[: self.block.rfind(".", 0, layers - 1) + 1]

    def holds_no_weights(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.unused)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a family, `name`, and the canonical tensors in it: their shapes, and both ways between them.

    unchanged: whether it is the canonical one, number for number.
    """

    canonical: Mapping[str, Shape]
    name: str
    shape: Shape
    to_canonical: Callable[[Array], dict[str, Array]]
    to_foreign: Callable[[Mapping[str, Array]], Array]
    unchanged: bool = False


def stored_tensors(names: TensorNames, config: ModelConfig) -> Iterator[StoredTensor]:
    """Every tensor of the model, once, in canonical order."""
    shapes = model_weight_shapes(config)
    done: set[str] = set()
    for name in shapes:
        if name not in done:
            tensor = _holding(name, names, config, shapes)
            done.update(tensor.canonical)
            yield tensor


def stored_attention(
    names: TensorNames, attention: Sequence[AttentionConfig], numbers: Sequence[int]
) -> Iterator[StoredTensor]:
    """As `stored_tensors`, of the attention layers alone. numbers: of these layers in the file."""
    for number, (place, layer) in enumerate(zip(numbers, attention, strict=True)):
        for name in sources(names.table, layer):
            yield _attention(name, names, number, layer, place)


def _attention(
    foreign: str, names: TensorNames, number: int, layer: AttentionConfig, place: int | None = None
) -> StoredTensor:
    """One tensor of the attention of layer `number`, by its name in the layout. place: its number in the file."""
    layout, inside = names.table, sources(names.table, layer)[foreign]
    theirs = names.block.format(number if place is None else place) + names.attention
    ours = f"blocks.{number}.attention."
    shapes = weight_shapes(layer)
    return StoredTensor(
        {ours + name: shapes[name] for name in inside},
        theirs + foreign,
        foreign_shapes(layout, layer)[foreign],
        lambda array: {ours + name: canonical_tensor(layout, name, {foreign: array}, layer) for name in inside},
        lambda given: foreign_tensor(layout, foreign, {name: given[ours + name] for name in inside}, layer),
        unchanged=layout.name == CANONICAL,
    )


def _holding(name: str, names: TensorNames, config: ModelConfig, shapes: Mapping[str, Shape]) -> StoredTensor:
    """The tensor that holds a canonical one."""
    if not name.startswith("blocks."):
        module, _, kind = name.rpartition(".")
        return _single(name, f"{names.ends[module]}.{kind}", shapes[name], names)
    _, number, inside = name.split(".", 2)
    if inside.startswith("attention."):
        layer, wanted = config.attention[int(number)], inside.removeprefix("attention.")
        inside_of = sources(names.table, layer)
        return _attention(next(f for f in inside_of if wanted in inside_of[f]), names, int(number), layer)
    if inside.startswith(EXPERTS):
        return _of_experts(inside.removeprefix(EXPERTS), names, config, int(number), shapes)
    module, _, kind = inside.rpartition(".")
    block = names.block.format(number)
    for foreign, modules in names.fused.items():
        if module in modules:
            pieces = {piece: shapes[piece] for piece in (f"blocks.{number}.{m}.{kind}" for m in modules)}
            return _fused(pieces, f"{block}{foreign}.{kind}")
    own = names.experts[0].router if module == ROUTER else names.modules[module]
    if module == "attention_norm" and config.parallel == "shared_norm" and names.shared_norm:
        own = names.shared_norm
    return _single(name, f"{block}{own}.{kind}", shapes[name], names)


def _of_experts(
    name: str, names: TensorNames, config: ModelConfig, layer: int, shapes: Mapping[str, Shape]
) -> StoredTensor:
    """The tensor that holds a weight of an expert, by its name under EXPERTS."""
    ours, block, spelling = f"blocks.{layer}.{EXPERTS}", names.block.format(layer), names.experts[0]
    number, module, kind = name.split(".")
    if spelling.each:
        return _single(ours + name, f"{block}{spelling.each[module].format(number)}.{kind}", shapes[ours + name], names)
    held = spelling.holding(module, kind)
    if held is None or config.experts is None:
        raise ValueError(f"no place for {ours}{name}")
    tensor, stack = held
    inside = stack.names(config.experts.num_experts)
    return StoredTensor(
        {ours + each: shapes[ours + each] for each in inside},
        block + tensor,
        stack.shape(config.experts, config.hidden_size),
        lambda array: {ours + each: piece for each, piece in stack.split(array).items()},
        lambda given: stack.join({each: given[ours + each] for each in inside}),
    )


def _single(ours: str, theirs: str, shape: Shape, names: TensorNames) -> StoredTensor:
    shift = 1 if names.one_plus_norms and ours.endswith("norm.weight") else 0
    return StoredTensor(
        {ours: shape},
        theirs,
        shape,
        lambda array: {ours: array - array.dtype.type(shift) if shift else array},
        lambda given: given[ours] + given[ours].dtype.type(shift) if shift else given[ours],
        unchanged=not shift,
    )


def _fused(pieces: Mapping[str, Shape], theirs: str) -> StoredTensor:
    first, ends = next(iter(pieces.values())), np.cumsum([shape[0] for shape in pieces.values()])
    return StoredTensor(
        pieces,
        theirs,
        (int(ends[-1]), *first[1:]),
        lambda array: dict(zip(pieces, np.split(array, ends[:-1]), strict=True)),
        lambda given: np.concatenate([given[name] for name in pieces]),
    )

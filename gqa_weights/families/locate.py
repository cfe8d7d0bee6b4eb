"""Which tensor of a checkpoint is which of a family's: by its name, behind a common prefix, or as half of a tied pair.

Files of one model differ in what precedes its names: `model.` may be missing (saved without the head), or there is
`language_model.` (part of a larger model), `_orig_mod.` (saved while compiled) or `module.` (while distributed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.checkpoint.tensors import Index
from gqa_weights.families.converted import TensorMapping, reader_of
from gqa_weights.families.tensors import StoredTensor, TensorNames

Array = np.ndarray
FLOATING = ("float16", "bfloat16", "float32", "float64")  # dtypes of weights
LISTED = 4  # of each kind of mismatch: a wrong family has thousands
BLOCK_BYTES = 2**24  # of two tensors that are compared


class LocatedTensors(Mapping[str, Array]):
    """The tensors of a checkpoint by a family's own names; those that are none of its names keep theirs.

    prefix: what the names of the model's own tensors start with in the file.
    """

    def __init__(self, source: TensorMapping, places: Mapping[str, str], prefix: str) -> None:
        self._source, self._prefix = source, prefix
        names = {place: name for name, place in places.items()}
        self._places = {names.get(place, place): place for place in source}

    def __getitem__(self, name: str) -> Array:
        return self._source[self._places[name]]

    def reader(self, name: str) -> Callable[[Index], Array]:
        return reader_of(self._source, self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # a Mapping would read the tensor to find out

    def info(self, name: str) -> TensorInfo:
        return self._source.info(self._places[name])

    def is_of_another_part(self, name: str) -> bool:
        """Whether a tensor is outside of the prefix that the model's own have."""
        return not self._places[name].startswith(self._prefix)

    def place(self, name: str) -> str:
        """The name of a tensor in the file."""
        return self._places[name]


def located(source: TensorMapping, wanted: Sequence[str], names: TensorNames) -> LocatedTensors:
    """The checkpoint by the family's names, as far as one prefix explains them.

    A tied pair may be stored under either name: where only the head is there, it is the embedding.
    """
    wanted = [*wanted, names.tied_head] if names.tied_head else wanted
    prefix, places = names.prefix, {name: name for name in wanted if name in source}
    for other in _prefixes(source, wanted, names.prefix):
        found = {name: place for name in wanted if (place := _place(name, names.prefix, other, source)) is not None}
        if len(found) > len(places):
            prefix, places = other, found
    embed = f"{names.ends['embed']}.weight"
    if embed not in places and names.tied_head in places and embed in wanted:
        places[embed] = places.pop(names.tied_head)
    return LocatedTensors(source, places, prefix)


def _prefixes(source: TensorMapping, wanted: Sequence[str], usual: str) -> Iterator[str]:
    """What precedes, in the file, the name of a tensor that every model of the family has."""
    inside = next((name for name in wanted if ".0." in name), wanted[0]).removeprefix(usual)
    yield from dict.fromkeys(
        name.removesuffix(inside) for name in source if name == inside or name.endswith(f".{inside}")
    )


def _place(name: str, usual: str, prefix: str, source: TensorMapping) -> str | None:
    """Where a file with that prefix has a tensor: the head is outside of what `usual` names, and may be anywhere."""
    if name.startswith(usual):
        candidates = [prefix + name.removeprefix(usual)]
    else:
        candidates = [prefix.removesuffix(usual) + name, prefix + name, name]
    return next((candidate for candidate in candidates if candidate in source), None)


def mismatches(tensors: LocatedTensors, expected: Sequence[StoredTensor], ignored: Sequence[str]) -> list[str]:
    """What is missing, unexpected or misshapen, each kind in one sentence, without reading a tensor."""
    shapes = {tensor.name: tensor.shape for tensor in expected}
    missing = [name for name in shapes if name not in tensors]
    unexpected = [tensors.place(name) for name in tensors if name not in shapes and name not in ignored]
    misshapen = [
        f"{name} expected {shape}, got {tensors.info(name).shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors.info(name).shape != shape
    ]
    numbers = [
        f"{name} expected {', '.join(FLOATING)}, got {tensors.info(name).dtype}"
        for name in shapes
        if name in tensors and tensors.info(name).dtype not in FLOATING
    ]
    kinds = (
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("", misshapen),
        _listed("", numbers),
    )
    return [sentence for sentence in kinds if sentence]


def _listed(kind: str, found: list[str]) -> str:
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{kind} {', '.join(found[:LISTED])}{more}".strip() if found else ""


def same_bits(a: str, b: str, tensors: TensorMapping) -> bool:
    """Whether two tensors hold the same values, bit for bit."""
    if tensors.info(a) != tensors.info(b):
        return False
    first, second = tensors[a], tensors[b]
    rows = max(1, BLOCK_BYTES // max(1, first[:1].nbytes))
    return all(
        first[start : start + rows].tobytes() == second[start : start + rows].tobytes()
        for start in range(0, len(first), rows)
    )

"""The tensors of one side as a mapping over the tensors of the other: read and converted at each access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from typing import Protocol

import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.checkpoint.tensors import Index
from gqa_weights.families.tensors import StoredTensor

Array = np.ndarray


class TensorMapping(Protocol):
    """A mapping of arrays that can describe them without reading: a Checkpoint, or one of the two below."""

    def __getitem__(self, name: str, /) -> Array: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...


def reader_of(source: TensorMapping | Mapping[str, Array], name: str) -> Callable[[Index], Array]:
    """The source's own `reader` of a tensor, or one of the whole where it has none."""
    own = getattr(source, "reader", None)
    return source[name].__getitem__ if own is None else own(name)


class WithoutScales(Mapping[str, Array]):
    """A checkpoint of scaled numbers; `left_out` are its scales, which are no tensors of their own, and what they are.

    A subclass gives each tensor in the numbers that it means.
    """

    def __init__(self, source: TensorMapping, left_out: dict[str, str]) -> None:
        self._source, self.left_out = source, left_out

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._source if name not in self.left_out)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._source and name not in self.left_out


class _Converted(Mapping[str, Array]):
    def __init__(self, source: TensorMapping, stored: Iterable[StoredTensor]) -> None:
        self._source = source
        self._stored = self._by_name(stored)

    def _by_name(self, stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # a Mapping would read the tensor to find out


class CanonicalWeights(_Converted):
    """Canonical names -> arrays, made of a checkpoint's tensors. Each access reads anew, an array of its own.

    Where several are in one tensor, the others are kept until they are read too, or until KEPT other tensors were
    read: so whoever goes through the names in order reads each tensor once, a fused weight and its bias too.
    """

    KEPT = 2

    def __init__(self, source: TensorMapping, stored: Iterable[StoredTensor], order: Iterable[str] = ()) -> None:
        super().__init__(source, stored)
        self._stored = {name: self._stored[name] for name in order} or self._stored
        self._kept: dict[str, dict[str, Array]] = {}  # tensor -> the weights in it that were not read yet

    def _by_name(self, stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
        return {name: tensor for tensor in stored for name in tensor.canonical}

    def __getitem__(self, name: str) -> Array:
        tensor = self._stored[name]
        if name not in self._kept.get(tensor.name, ()):
            for oldest in list(self._kept)[: -(self.KEPT - 1)]:  # free it before the next one is read
                del self._kept[oldest]
            self._kept[tensor.name] = tensor.to_canonical(self._source[tensor.name])
        weights = self._kept[tensor.name]
        array = weights.pop(name)
        if not weights:
            del self._kept[tensor.name]
        return np.ascontiguousarray(array)

    def reader(self, name: str) -> Callable[[Index], Array]:
        """A function that gives parts of a weight: only those are read where the file holds the weight as it is and its
        format can, else the whole, now.
        """
        tensor = self._stored[name]
        return reader_of(self._source, tensor.name) if tensor.unchanged else self[name].__getitem__

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, without reading. Raises KeyError for a name that is not there."""
        tensor = self._stored[name]
        return TensorInfo(tensor.canonical[name], self._source.info(tensor.name).dtype)

    def origin(self, name: str) -> str:
        """The checkpoint's name of the tensor that holds this one."""
        return self._stored[name].name


class ForeignWeights(_Converted):
    """A family's names -> arrays, made of canonical weights. Each access computes anew, an array of its own."""

    def _by_name(self, stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
        return {tensor.name: tensor for tensor in stored}

    def __getitem__(self, name: str) -> Array:
        tensor = self._stored[name]
        return tensor.to_foreign({ours: self._source[ours] for ours in tensor.canonical})

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, without computing. Raises KeyError for a name that is not there."""
        tensor = self._stored[name]
        return TensorInfo(tensor.shape, widest(self._source.info(ours).dtype for ours in tensor.canonical))

    def origins(self, name: str) -> tuple[str, ...]:
        """The canonical names of the weights in this tensor."""
        return tuple(self._stored[name].canonical)


def widest(dtypes: Iterable[str]) -> str:
    """The narrowest dtype that holds every value of all of them; float32 for none."""
    kinds = set(dtypes) or {"float32"}
    if {"float16", "bfloat16"} <= kinds:  # neither holds the other, for which NumPy has no rule
        kinds = kinds - {"float16", "bfloat16"} | {"float32"}
    return reduce(np.promote_types, map(np.dtype, kinds)).name

"""The tensors of one side as a mapping over the tensors of the other: read and converted when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families.names import Group, Shape

Array = np.ndarray


class Source(Protocol):
    """A mapping of arrays that can describe them without reading: a Checkpoint, or one of the two below."""

    def __getitem__(self, name: str, /) -> Array: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...


class _Converted(Mapping[str, Array]):
    def __init__(self, source: Source, groups: Iterable[Group]) -> None:
        self._source = source
        self._groups = self._by_name(groups)

    def _by_name(self, groups: Iterable[Group]) -> dict[str, Group]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, name: object) -> bool:
        return name in self._groups  # a Mapping would read the tensor to find out


class CanonicalWeights(_Converted):
    """Canonical names -> arrays, made of a checkpoint's tensors. Each access reads anew, an array of its own.

    Where several stand in one tensor, the others are kept until they are asked for, so that each tensor is read once
    by whoever goes through the names in order.
    """

    def __init__(self, source: Source, groups: Iterable[Group]) -> None:
        super().__init__(source, groups)
        self._kept: dict[str, Array] = {}

    def _by_name(self, groups: Iterable[Group]) -> dict[str, Group]:
        return {name: group for group in groups for name in group.canonical}

    def __getitem__(self, name: str) -> Array:
        if name not in self._kept:
            group = self._groups[name]
            self._kept = {}  # the last tensor's go before the next one's come
            self._kept = group.to_canonical(self._source[group.name])
        return self._kept.pop(name)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, without reading. Raises KeyError for a name that is not there."""
        group = self._groups[name]
        return TensorInfo(group.canonical[name], self._source.info(group.name).dtype)

    def origin(self, name: str) -> str:
        """The checkpoint's name of the tensor that holds this one."""
        return self._groups[name].name


class ForeignWeights(_Converted):
    """A family's names -> arrays, made of canonical weights. Each access computes anew, an array of its own."""

    def _by_name(self, groups: Iterable[Group]) -> dict[str, Group]:
        return {group.name: group for group in groups}

    def __getitem__(self, name: str) -> Array:
        group = self._groups[name]
        return group.to_foreign({ours: self._source[ours] for ours in group.canonical})

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, without computing. Raises KeyError for a name that is not there."""
        group = self._groups[name]
        dtypes = [np.dtype(self._source.info(ours).dtype) for ours in group.canonical]
        return TensorInfo(group.shape, np.result_type(*dtypes).name)

    def origins(self, name: str) -> tuple[str, ...]:
        """The canonical names of the weights in this tensor."""
        return tuple(self._groups[name].canonical)


def mismatched_tensors(source: Source, expected: Mapping[str, Shape], ignored: Callable[[str], bool]) -> list[str]:
    """What is missing, unexpected or misshapen among the tensors of a checkpoint, without reading them."""
    problems = [f"missing {name}" for name in expected if name not in source]
    problems += [f"unexpected {name}" for name in source if name not in expected and not ignored(name)]
    for name, shape in expected.items():
        if name in source and source.info(name).shape != shape:
            problems.append(f"{name} expected {shape}, got {source.info(name).shape}")
    return problems

"""Weights made from a model's, as mappings: each is computed at its access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from gqa_spec.config import AttentionConfig, weight_shapes
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights import heads
from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families import Family, Model, TensorMapping
from gqa_weights.layouts.rules import rounded_weights

Array = np.ndarray
Surgery = Callable[[int, Mapping[str, Array], AttentionConfig], heads.Layer]
HALF_PRECISION = ("float16", "bfloat16")


class Operated(Mapping[str, Array]):
    """A model's weights with each attention layer changed by `surgery`; one changed layer is held at a time."""

    def __init__(self, model: Model, config: ModelConfig, surgery: Surgery) -> None:
        self._model, self._config, self._surgery = model, config, surgery
        self._shapes = model_weight_shapes(config)
        self._kept: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if self._shapes[name] == self._model.weights.info(name).shape:
            return self._model.weights[name]
        if name not in self._kept:
            self._kept = {}  # free the last layer before the next one is read
            number = int(name.split(".")[1])
            prefix, before = f"blocks.{number}.attention.", self._model.config.attention[number]
            weights = {inside: self._model.weights[prefix + inside] for inside in weight_shapes(before)}
            layer, _ = self._surgery(number, weights, before)
            self._kept = {prefix + inside: x for inside, x in layer.items() if x is not weights[inside]}
        return self._kept.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self._shapes[name], self._model.weights.info(name).dtype)


def shifted_norms(family: Family, attention: Sequence[AttentionConfig], config: ModelConfig | None) -> set[str]:
    """The canonical norm weights that 1 is added to, or taken from, to store them in a family's files.

    Args:
        family: A record of FAMILIES.
        attention: The settings of each layer.
        config: The whole model's, None where only its attention is read.

    Returns:
        Their canonical names.
    """
    inside = {
        f"blocks.{number}.attention.{name}"
        for number, layer in enumerate(attention)
        for name in rounded_weights(family.tensors.table, layer)
    }
    if config is None or not family.tensors.one_plus_norms:
        return inside
    outside = (name for name in model_weight_shapes(config) if ".attention." not in name)
    return inside | {name for name in outside if name.endswith("norm.weight")}


class Widened(Mapping[str, Array]):
    """Weights of which those of `names` are float32 where they are 16-bit: 1 + w of 8 or 11 bits loses most of w."""

    def __init__(self, source: TensorMapping, names: Iterable[str]) -> None:
        self._source, self._names = source, set(names)

    def __getitem__(self, name: str) -> Array:
        array = self._source[name]
        return array.astype(np.float32) if self._widens(name) else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return sum(1 for _ in self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def info(self, name: str) -> TensorInfo:
        info = self._source.info(name)
        return TensorInfo(info.shape, "float32") if self._widens(name) else info

    def _widens(self, name: str) -> bool:
        return name in self._names and self._source.info(name).dtype in HALF_PRECISION

"""A model -> the tensors and the settings of a family's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families.converted import ForeignWeights, TensorMapping
from gqa_weights.families.record import Family
from gqa_weights.families.records import FAMILIES
from gqa_weights.families.tensors import StoredTensor, stored_tensors

NOTHING: Mapping[str, Any] = MappingProxyType({})
LISTED = 8  # of what a family has no settings for
UNKNOWN_LENGTH = ("max_length", None)  # Meta's files do not tell; a family's default then loses nothing


def foreign_tensors(family: str, config: ModelConfig) -> tuple[StoredTensor, ...]:
    """Every tensor of a model in this family: its name and shape, and the canonical weights in it, both ways.

    Raises:
        ValueError: Where the family's layout cannot express the config.
    """
    names = FAMILIES[family].tensors
    unmapped_modules = names.unmapped_modules(config)
    if unmapped_modules:
        raise ValueError(f"family {family} has no place for {', '.join(unmapped_modules)}")
    return (*stored_tensors(names, config), *FAMILIES[family].constants(config))


def foreign_weights(family: str, config: ModelConfig, weights: TensorMapping) -> ForeignWeights:
    """Canonical weights as the family's own tensors, each computed at its access: the inverse of Model.weights."""
    return ForeignWeights(weights, foreign_tensors(family, config))


def model_settings(family: str, config: ModelConfig, carried: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """The settings to write beside the tensors: config.json, params.json, a GGUF's fields, or the manifest's config.

    They are read back before they are returned. The RoPE pairing belongs to the layout and is no setting. A null that
    says nothing is left out: transformers refuses some of them.

    Args:
        family: A key of FAMILIES.
        config: The model's settings.
        carried: Settings of the model's source that change no number; those of the config go before them.

    Returns:
        The settings, ready for JSON.

    Raises:
        ValueError: Names what the family has no setting for.
        ReadOnlyFamilyError: For families of which only the attention is supported.
    """
    record = FAMILIES[family]
    settings = {**carried, **record.write_config(config)}
    shapes = foreign_weights(family, config, _Shapes(model_weight_shapes(config)))
    wanted = record.as_read(_paired(config, record))

    def lost(settings: Mapping[str, Any]) -> list[str]:
        return _differences(wanted, record.read_config(settings, shapes))

    found = lost(settings)
    if found:
        raise ValueError(f"family {family} has no settings for {'; '.join(found[:LISTED])}")
    for key in [key for key, value in settings.items() if value is None and key not in carried]:
        without = {name: value for name, value in settings.items() if name != key}
        if not lost(without):
            settings = without
    return settings


class _Shapes(dict[str, Any]):
    """Shapes in the place of weights, for readers of shapes alone."""

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self[name], "float32")


def _paired(config: ModelConfig, family: Family) -> ModelConfig:
    """The config that is read back from rows that the layout re-pairs."""
    if family.tensors.table.pairing is None:
        return config
    layers = (
        layer if layer.rope is None else replace(layer, rope=replace(layer.rope, pairing="half"))
        for layer in config.attention
    )
    return replace(config, attention=tuple(layers))


def _differences(wanted: ModelConfig, got: ModelConfig) -> list[str]:
    lost = [
        f"{name} {mine!r} (it would be {theirs!r})"
        for name, mine, theirs in _fields(wanted, got)
        if mine != theirs and name != "attention" and (name, mine) != UNKNOWN_LENGTH
    ]
    layers: dict[str, list[int]] = {}
    for number, (mine, theirs) in enumerate(zip(wanted.attention, got.attention, strict=True)):
        for name, a, b in _fields(mine, theirs):
            if a != b:
                layers.setdefault(f"{name} {a!r} (it would be {b!r})", []).append(number)
    for difference, numbers in layers.items():
        more = f" and in {len(numbers) - 1} more" if len(numbers) > 1 else ""
        lost.append(f"attention[{numbers[0]}].{difference}{more}")
    return lost


def _fields(wanted: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    for field in fields(wanted):
        yield field.name, getattr(wanted, field.name), getattr(got, field.name)

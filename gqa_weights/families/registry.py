"""The table of families, and what can be done with one: find it, read a checkpoint of it, and write one back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights import manifest
from gqa_weights.checkpoint import Checkpoint, CheckpointError, TensorInfo
from gqa_weights.families import gguf, huggingface, huggingface_tables, meta
from gqa_weights.families.lazy import CanonicalWeights, ForeignWeights, Source, mismatched_tensors
from gqa_weights.families.names import Group, Names, attention_groups, groups
from gqa_weights.layouts.tables import LAYOUTS

Settings = Mapping[str, Any]
LISTED = 8  # of a checkpoint's mismatched_tensors: a wrong family has thousands
UNKNOWN_LENGTH = ("max_length", None)  # Meta's files do not tell; a family's default then loses nothing


@dataclass(frozen=True)
class Family:
    """file: where its settings stand. read: settings and tensors -> ModelConfig. write: the inverse, as far as it goes,
    or None for families that we only read.
    """

    name: str
    file: str
    names: Names
    read: Callable[[str, Settings, Source], ModelConfig]
    write: Callable[[str, ModelConfig], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Model:
    """weights: canonical names -> arrays, read when they are asked for."""

    family: str
    config: ModelConfig
    weights: CanonicalWeights


@dataclass(frozen=True)
class AttentionModel:
    """The attention layers of a checkpoint alone; weights: `blocks.{i}.attention.*`."""

    family: str
    attention: tuple[AttentionConfig, ...]
    weights: CanonicalWeights


class ReadOnlyFamilyError(ValueError):
    """A family that is read but not written."""


CANONICAL = Names(
    ends={"embed": "embed", "norm": "norm", "head": "head"}, block="blocks.{}.", attention="attention.",
    modules={
        name: name for name in (
            "attention_norm", "attention_post_norm", "feed_forward_norm", "feed_forward.gate", "feed_forward.up",
            "feed_forward.down", "feed_forward_post_norm",
        )
    },
    layout="canonical",
)  # fmt: skip

MANIFEST = "gqa_manifest.json"
FOLDER_FILES = (huggingface.FILE, meta.FILE, MANIFEST)
# Layouts of attention alone: the rest of a model has its canonical names, and its settings are in the manifest.
# "gemma" is Hugging Face's family here.
_OF_FAMILIES = {
    names.layout for names in (*huggingface_tables.NAMES.values(), *gguf.NAMES.values(), *meta.NAMES.values())
}
BY_MANIFEST = {
    "deepmind.gemma" if name == "gemma" else name: name
    for name in LAYOUTS
    if name == "canonical" or name not in _OF_FAMILIES | {"huggingface"}
}

FAMILIES: dict[str, Family] = {
    **{
        name: Family(
            name, huggingface.FILE, names, lambda family, settings, _: huggingface.read_config(family, settings),
            None if name == "gpt_oss" else huggingface.write_config,
        )
        for name, names in huggingface_tables.NAMES.items()
    },
    **{name: Family(name, gguf.FILE, names, gguf.read_config) for name, names in gguf.NAMES.items()},
    **{
        name: Family(name, meta.FILE, names, meta.read_config, meta.write_config) for name, names in meta.NAMES.items()
    },
    **{
        name: Family(
            name, MANIFEST, replace(CANONICAL, layout=layout), lambda _, settings, __: manifest.from_json(settings),
            lambda _, config: manifest.to_json(config),
        )
        for name, layout in BY_MANIFEST.items()
    },
}  # fmt: skip


def detect(checkpoint: Checkpoint) -> str:
    """The family of a checkpoint: a key of FAMILIES, "gguf.llama" for a GGUF's llama.

    Raises CheckpointError where its settings name none or an unknown one.
    """
    name = _named(checkpoint)
    if name is None:
        beside = checkpoint.path.is_file() and any((checkpoint.path.parent / file).is_file() for file in FOLDER_FILES)
        hint = f": give its folder, {checkpoint.path.parent}" if beside else ""
        raise CheckpointError(f"{checkpoint.path}: no config.json and no other settings that name a family{hint}")
    if not isinstance(name, str) or name not in FAMILIES:
        file = gguf.FILE if checkpoint.format == "gguf" else huggingface.FILE
        known = ", ".join(known for known, family in FAMILIES.items() if family.file == file)
        raise CheckpointError(f"{checkpoint.path}: unknown family {name!r}, known are {known}")
    return name


def read_model(checkpoint: Checkpoint) -> Model:
    """A whole model: its settings understood, its tensors all there and of the right shapes; none is read yet.

    Raises CheckpointError that names every setting, or tensor, that is missing, unknown, unsupported or misshapen.
    """
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        config = family.read(family.name, _settings(checkpoint, family), checkpoint)
        return Model(family.name, config, _weights(checkpoint, family, config))


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The settings of a whole model alone, whatever its tensors are. Raises as `read_model`."""
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        return family.read(family.name, _settings(checkpoint, family), checkpoint)


def read_attention(checkpoint: Checkpoint) -> AttentionModel:
    """The attention layers of a model, also of families whose other parts are not supported (gpt_oss)."""
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        settings = _settings(checkpoint, family)
        if family.file == huggingface.FILE:
            layers = huggingface.read_attention(family.name, settings)
        else:
            layers = family.read(family.name, settings, checkpoint).attention
        mine = tuple(attention_groups(family.names, layers))
        _fit(checkpoint, mine, lambda _: True)
        return AttentionModel(family.name, layers, CanonicalWeights(checkpoint, mine))


def foreign_tensors(family: str, config: ModelConfig) -> tuple[Group, ...]:
    """Every tensor of a model in this family: its name and shape, and the canonical weights in it, both ways.

    Raises ValueError where the family's layout cannot express the config.
    """
    names = FAMILIES[family].names
    unmapped_modules = names.unmapped_modules(config)
    if unmapped_modules:
        raise ValueError(f"family {family} has no place for {', '.join(unmapped_modules)}")
    return tuple(groups(names, config))


def foreign_weights(family: str, config: ModelConfig, weights: Source) -> ForeignWeights:
    """Canonical weights as the family's own tensors, computed when they are asked for: the inverse of Model.weights."""
    return ForeignWeights(weights, foreign_tensors(family, config))


def model_settings(family: str, config: ModelConfig) -> dict[str, Any]:
    """The settings to write beside the tensors: config.json, params.json, or the manifest's config.

    They are read back before they are returned. Raises ValueError that names what the family has no setting for, and
    ReadOnlyFamilyError for GGUF and gpt_oss. The RoPE pairing is the layout's affair, not a setting.
    """
    write = FAMILIES[family].write
    if write is None:
        raise ReadOnlyFamilyError(f"family {family} can be read, but not written")
    settings = write(family, config)
    stand_ins = foreign_weights(family, config, _Shapes(model_weight_shapes(config)))
    lost = _differences(_paired(config, family), FAMILIES[family].read(family, settings, stand_ins))
    if lost:
        raise ValueError(f"family {family} has no settings for {'; '.join(lost[:LISTED])}")
    return settings


def _named(checkpoint: Checkpoint) -> Any:
    settings = checkpoint.settings
    if checkpoint.format == "gguf":
        return f"gguf.{settings.get('general.architecture')}"
    if "model_type" in settings:
        return settings["model_type"]
    if {"dim", "n_layers", "n_heads"} <= set(settings):
        return meta.FAMILY
    if "config" in checkpoint.manifest:
        layout = checkpoint.manifest.get("layout", "canonical")
        return next((name for name, mine in BY_MANIFEST.items() if mine == layout), None)
    return None


def _settings(checkpoint: Checkpoint, family: Family) -> Settings:
    return checkpoint.manifest["config"] if family.file == MANIFEST else checkpoint.settings


def _weights(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> CanonicalWeights:
    if config.num_layers > len(checkpoint):
        raise ValueError(f"tensors: expected {config.num_layers} layers, got {len(checkpoint)} tensors in all")
    every = tuple(groups(family.names, config))
    _fit(checkpoint, every, lambda name: family.names.ignores(name, config))
    return CanonicalWeights(checkpoint, every)


def _fit(checkpoint: Checkpoint, expected: Sequence[Group], ignored: Callable[[str], bool]) -> None:
    problems = mismatched_tensors(checkpoint, {group.name: group.shape for group in expected}, ignored)
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"tensors: {'; '.join(problems[:LISTED])}{more}")


@contextmanager
def _one_sentence(checkpoint: Checkpoint, family: Family) -> Iterator[None]:
    """Whatever a config refuses becomes an error of the file that it was read from."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        text = str(error)
        where = "" if text.startswith((family.file, "tensors: ")) else f"{family.file}: "
        raise CheckpointError(f"{checkpoint.path}: {where}{text}") from error


class _Shapes(dict[str, Any]):
    """Shapes in the place of weights, for those who only ask what they are."""

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self[name], "float32")


def _paired(config: ModelConfig, family: str) -> ModelConfig:
    """The config of the stored rows, which the layout re-pairs."""
    pairing = LAYOUTS[FAMILIES[family].names.layout].pairing
    if pairing is None:
        return config
    turned = (
        layer if layer.rope is None else replace(layer, rope=replace(layer.rope, pairing="half"))
        for layer in config.attention
    )
    return replace(config, attention=tuple(turned))


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

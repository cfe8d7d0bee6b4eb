"""A checkpoint -> its family, its settings, and its weights by their canonical names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.open import expected_in
from gqa_weights.checkpoint.tensors import SETTINGS_ALONE
from gqa_weights.families import config_json, gguf_fields, params_json
from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.converted import CanonicalWeights, TensorMapping, widest
from gqa_weights.families.float8 import Dequantized, dequantized
from gqa_weights.families.locate import located, mismatches, same_bits
from gqa_weights.families.mxfp4 import Unpacked, unpacked
from gqa_weights.families.nested import LARGER_MODELS, is_larger, text_settings
from gqa_weights.families.params_json import ParamsFamily
from gqa_weights.families.record import Family, Values
from gqa_weights.families.records import FAMILIES
from gqa_weights.families.records.canonical import ManifestFamily
from gqa_weights.families.tensors import stored_attention, stored_tensors

MANIFEST = ManifestFamily.file
FOLDER_FILES = (config_json.FILE, params_json.FILE, MANIFEST)


@dataclass(frozen=True)
class Model:
    """weights: canonical names -> arrays, each read at its access. unread: tensors of the file that are no weights of
    the model -> why. ignored: the settings that were passed over because the caller said so.
    """

    family: str
    config: ModelConfig
    weights: CanonicalWeights
    unread: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The widest dtype of the weights, in which none of them is rounded."""
        return widest(self.weights.info(name).dtype for name in self.weights)


@dataclass(frozen=True)
class AttentionModel:
    """The attention layers of a checkpoint alone; weights: `blocks.{i}.attention.*` of the i-th of them. numbers: what
    the file calls these layers: others between them may have no attention.
    """

    family: str
    attention: tuple[AttentionConfig, ...]
    weights: CanonicalWeights
    numbers: tuple[int, ...] = ()


def detect(checkpoint: Checkpoint) -> str:
    """The family of a checkpoint: a key of FAMILIES, "gguf.llama" for a GGUF's llama.

    Raises:
        CheckpointError: Where its settings name no family, or an unknown one.
    """
    name = _named(checkpoint)
    if name is None:
        beside = checkpoint.path.is_file() and any((checkpoint.path.parent / file).is_file() for file in FOLDER_FILES)
        hint = f": give its folder, {checkpoint.path.parent}" if beside else ""
        raise CheckpointError(f"{checkpoint.path}: no config.json and no other settings that name a family{hint}")
    if not isinstance(name, str) or name not in FAMILIES:
        file = gguf_fields.FILE if checkpoint.format == "gguf" else config_json.FILE
        known = ", ".join(known for known, family in FAMILIES.items() if family.file == file)
        if file == config_json.FILE:
            known += f"; and the text of {', '.join(LARGER_MODELS)}"
        raise CheckpointError(f"{checkpoint.path}: unknown family {name!r}, known are {known}")
    return name


def read_model(checkpoint: Checkpoint, *, ignore: Collection[str] = ()) -> Model:
    """A whole model: its settings, and its tensors, all there and of the right shapes.

    No tensor is read yet, but for a tied pair of which the file has both: what repeats the embedding bit for bit is
    left out, and a head of its own is used, whatever the settings say.

    Args:
        checkpoint: What `open_checkpoint` gives.
        ignore: Keys of its settings that are passed over, whatever they would change; `Model.ignored` keeps them.

    Raises:
        CheckpointError: Names every setting, or tensor, that is missing, unknown, unsupported or misshapen.
    """
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        config = family.read_config(_settings(checkpoint, family, ignore), checkpoint)
        if checkpoint.format == SETTINGS_ALONE:
            expected = expected_in(checkpoint.path)
            raise ValueError(f"tensors: the folder has {family.file} and no tensors: expected one of {expected}")
        if config.num_layers > len(checkpoint):
            raise ValueError(f"tensors: expected {config.num_layers} layers, got {len(checkpoint)} tensors in all")
        return replace(_model(checkpoint, family, config), ignored=tuple(ignore))


def read_config(checkpoint: Checkpoint, *, ignore: Collection[str] = ()) -> ModelConfig:
    """The settings of a whole model alone, whatever its tensors are.

    Raises:
        CheckpointError: As `read_model`.
    """
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        return family.read_config(_settings(checkpoint, family, ignore), checkpoint)


def read_attention(checkpoint: Checkpoint, *, ignore: Collection[str] = ()) -> AttentionModel:
    """The attention layers of a model, also of families whose other parts are not supported (gpt_oss).

    Of a folder that has only its settings, the layers have no weights.

    Raises:
        CheckpointError: As `read_model`.
    """
    family = FAMILIES[detect(checkpoint)]
    with _one_sentence(checkpoint, family):
        settings = _settings(checkpoint, family, ignore)
        layers = family.read_attention(settings, checkpoint)
        numbers = tuple(family.attention_layers(settings, len(layers)))
        stored = tuple(stored_attention(family.tensors, layers, numbers))
        tensors = located(weights_of(checkpoint), [tensor.name for tensor in stored], family.tensors)
        if checkpoint.format != SETTINGS_ALONE:
            _require(mismatches(tensors, stored, ignored=list(tensors)))
        return AttentionModel(family.name, layers, CanonicalWeights(tensors, stored), numbers)


def _named(checkpoint: Checkpoint) -> Any:
    settings = _text(checkpoint)
    if checkpoint.format == "gguf":
        try:
            gguf_fields.check_whole(settings)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        return f"{gguf_fields.PREFIX}{settings['general.architecture']}"
    for family in FAMILIES.values():
        if isinstance(family, ParamsFamily) and set(family.required) <= set(settings):
            return family.name
    if "model_type" in settings:
        return settings["model_type"]
    if "config" in checkpoint.manifest:
        layout = checkpoint.manifest.get("layout", "canonical")
        mine = (family for family in FAMILIES.values() if family.file == MANIFEST)
        return next((family.name for family in mine if family.tensors.layout == layout), None)
    return None


def _text(checkpoint: Checkpoint) -> Values:
    """The settings, of a larger model those of its text."""
    settings = checkpoint.settings
    if checkpoint.format == "gguf" or not is_larger(settings):
        return settings
    try:
        return text_settings(settings)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def _settings(checkpoint: Checkpoint, family: Family, ignore: Collection[str]) -> Values:
    values = checkpoint.manifest["config"] if family.file == MANIFEST else _text(checkpoint)
    if not isinstance(values, Mapping):
        raise ValueError(f"{family.file}: config: expected an object, got {type(values).__name__}")
    for key in ignore:
        if key not in values:
            raise ValueError(f"{family.file}: no setting {key!r} to ignore")
    sizes = family.sizes if isinstance(family, HuggingFaceFamily) and is_larger(checkpoint.settings) else {}
    return {**sizes, **{key: value for key, value in values.items() if key not in ignore}}


def _model(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> Model:
    source = weights_of(checkpoint)
    names = family.tensors.spelled(source)
    stored = tuple(stored_tensors(names, config))
    tensors = located(source, [tensor.name for tensor in stored], names)
    unread = {name: "holds no weights" for name in tensors if names.holds_no_weights(name)}
    if is_larger(checkpoint.settings):
        unread |= {name: "is not of the text" for name in tensors if tensors.is_of_another_part(name)}
        unread = {name: why for name, why in unread.items() if name not in {tensor.name for tensor in stored}}
    if config.tied and names.tied_head in tensors:
        embed = f"{names.ends['embed']}.weight"
        if not same_bits(names.tied_head, embed, tensors):
            return _model(checkpoint, family, replace(config, tied=False))
        unread[names.tied_head] = f"repeats {tensors.place(embed)} bit for bit"
    _require(mismatches(tensors, stored, list(unread)))
    left_out = {tensors.place(name): why for name, why in unread.items()}
    if isinstance(source, Dequantized | Unpacked):
        left_out |= source.left_out
    return Model(family.name, config, CanonicalWeights(tensors, stored, model_weight_shapes(config)), left_out)


def weights_of(checkpoint: Checkpoint) -> TensorMapping:
    """Its tensors, quantized ones as the numbers that they mean."""
    return dequantized(unpacked(checkpoint), _text(checkpoint))


def _require(mismatched: list[str]) -> None:
    if mismatched:
        raise ValueError(f"tensors: {'; '.join(mismatched)}")


@contextmanager
def _one_sentence(checkpoint: Checkpoint, family: Family) -> Iterator[None]:
    """Whatever a config refuses becomes an error of the file that it was read from: values of the wrong kind, which a
    file may have anywhere, raise any kind of exception.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        plain = isinstance(error, ValueError | TypeError | OverflowError)
        text = str(error) if plain else f"{type(error).__name__}: {error}"
        where = "" if text.startswith((family.file, "tensors: ")) else f"{family.file}: "
        raise CheckpointError(f"{checkpoint.path}: {where}{text}") from error

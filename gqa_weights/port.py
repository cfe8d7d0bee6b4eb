"""Ports: a checkpoint in another layout, planned from its headers and written one tensor at a time.

A plan knows every tensor that will be written, how it is computed, and the manifest; what cannot be done is
refused while planning, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec import checks
from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights import gguf_port, heads
from gqa_weights.carried import carried_files, carried_settings
from gqa_weights.checkpoint import Checkpoint, CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.checkpoint.save import check_place, is_folder
from gqa_weights.derived import HALF_PRECISION, Operated, Surgery, Widened, shifted_norms
from gqa_weights.families import (
    FAMILIES,
    MANIFEST,
    AttentionModel,
    Family,
    ForeignWeights,
    Model,
    TensorMapping,
    detect,
    foreign_weights,
    model_settings,
    read_attention,
    read_model,
)
from gqa_weights.families.config_json import FILE as CONFIG
from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.gguf_fields import GgufFamily
from gqa_weights.families.params_json import FILE as PARAMS
from gqa_weights.gguf_vocabulary import vocabulary_fields
from gqa_weights.manifest import manifest

Array = np.ndarray
Tensor = tuple[str, TensorInfo, Callable[[], Array]]

BLOCK_BYTES = 2**24  # of a tensor that is cast at once
DTYPES = ("float64", "float32", "float16", "bfloat16", gguf_port.Q8_0)
ALIASES = {"meta": "meta.llama", "flax": "flax.nnx.MultiHeadAttention", "keras": "keras.layers.GroupQueryAttention"}
FORMATS = {".npz": "npz", ".orbax": "orbax", gguf_port.SUFFIX: "gguf"}
TARGETS = ("huggingface", *ALIASES, "gguf", *(name for name, family in FAMILIES.items() if family.writable))


@dataclass(frozen=True)
class Plan:
    """What a port will write.

    Attributes:
        source: The checkpoint that is ported.
        tensors: Of each its name, its shape and dtype, and a function that computes it.
        settings: config.json, params.json or the fields of a GGUF, of a family that has one.
        manifest: gqa_manifest.json, without checksums.
        files: Files that are carried along into a folder, by name.
        notes: What the user should be told of the result.
        settings_file: What a folder calls the settings.
    """

    source: Path
    tensors: list[Tensor]
    settings: Mapping[str, Any] | None
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes | Path]
    notes: tuple[str, ...] = ()
    settings_file: str = "config.json"

    @property
    def nbytes(self) -> int:
        return sum(info.stored_bytes for _, info, _ in self.tensors)


def open_model(path: str | Path) -> Model | AttentionModel:
    """The model at a path; its attention layers where only those are supported.

    Raises:
        CheckpointError: For a file that cannot be read, and settings or tensors that are not understood.
    """
    checkpoint = open_checkpoint(path)
    return (read_attention if FAMILIES[detect(checkpoint)].attention_only else read_model)(checkpoint)


def plan(source: str | Path, to: str, dtype: str | None = None, ignore: Collection[str] = ()) -> Plan:
    """Plan to write the source in another layout.

    Args:
        source: A checkpoint, a file or a folder.
        to: One of TARGETS.
        dtype: What every tensor is cast to; kept when None. "q8_0" is of GGUF alone.
        ignore: Settings of the source that are passed over; the manifest lists them.

    Returns:
        The plan, for `write`.

    Raises:
        CheckpointError: Where the source cannot be read.
        ValueError: Where the target cannot express it.
    """
    checks.choice("layout", to, TARGETS)
    checkpoint = open_checkpoint(source)
    model = read_model(checkpoint, ignore=ignore)
    return _plan(checkpoint, model, to, model.config, model.weights, dtype)


def plan_pooled(source: str | Path, num_kv_heads: int, method: heads.PoolMethod = "mean", seed: int = 0) -> Plan:
    """Plan to write the source with fewer KV heads in every layer, in its own layout (a GGUF's: in Hugging Face's).

    Args:
        source: A checkpoint, a file or a folder.
        num_kv_heads: The KV heads of each layer afterwards.
        method: As in `heads.pool_kv_heads`.
        seed: For "random".

    Returns:
        The plan, for `write`.

    Raises:
        ValueError: As `plan`, and unless num_kv_heads divides the KV heads of every layer.
    """

    def pool(number: int, weights: Mapping[str, Array], config: AttentionConfig) -> heads.Layer:
        return heads.pool_kv_heads(weights, config, num_kv_heads, method, np.random.default_rng([seed, number]))

    def check(layer: AttentionConfig) -> None:
        checks.pooled_heads(num_kv_heads, layer.num_kv_heads)

    return _operated(source, f"KV heads pooled by {method}", num_kv_heads, check, pool)


def plan_expanded(source: str | Path, num_kv_heads: int | None = None) -> Plan:
    """Plan to write the source with more KV heads in every layer, in its own layout.

    Args:
        source: A checkpoint, a file or a folder.
        num_kv_heads: The KV heads of each layer afterwards; num_heads when None.

    Returns:
        The plan, for `write`.

    Raises:
        ValueError: As `plan`, and unless num_kv_heads is a multiple of the KV heads and divides the query heads.
    """

    def expand(number: int, weights: Mapping[str, Array], config: AttentionConfig) -> heads.Layer:
        return heads.expand_kv_heads(weights, config, num_kv_heads)

    def check(layer: AttentionConfig) -> None:
        checks.expanded_heads(num_kv_heads or layer.num_heads, layer.num_kv_heads, layer.num_heads)

    return _operated(source, "KV heads repeated", num_kv_heads, check, expand)


def write(
    plan: Plan,
    dest: str | Path,
    *,
    force: bool = False,
    shard_bytes: int | None = None,
    checksums: bool = True,
    done: Callable[[int], None] = lambda size: None,
) -> None:
    """Write the planned files.

    Args:
        plan: From `plan`, `plan_pooled` or `plan_expanded`.
        dest: A folder, or a file that ends in .safetensors, .npz or .gguf; a folder that ends in .orbax is written by
            orbax. A layout of GGUF is written to .gguf, and no other is.
        force: Overwrite a checkpoint at dest, which may be the source itself.
        shard_bytes: The most bytes of one file of a safetensors folder; 5 GB when None.
        checksums: Put the checksum of each tensor into the manifest.
        done: Called with the number of bytes of each piece that was written.

    Raises:
        CheckpointError: As `save_checkpoint`, and where one of source and dest is inside the other. Nothing is left
            behind.
    """
    _check_apart(plan.source, Path(dest))
    gguf_port.check_dest(plan.manifest["layout"], Path(dest))
    save_checkpoint(
        dest,
        plan.tensors,
        format=_format(dest),
        settings=plan.settings,
        settings_file=plan.settings_file,
        manifest=None if _format(dest) == "gguf" else plan.manifest,
        force=force,
        shard_bytes=shard_bytes,
        checksums=checksums,
        files=files_at(plan, dest),
        done=done,
    )


def check(plan: Plan, dest: str | Path, *, force: bool = False) -> None:
    """Raise what `write` would raise before it writes; nothing is written.

    Raises:
        CheckpointError: As `write`.
    """
    _check_apart(plan.source, Path(dest))
    gguf_port.check_dest(plan.manifest["layout"], Path(dest))
    check_place(dest, plan.tensors, format=_format(dest), force=force, files=files_at(plan, dest))


def files_at(plan: Plan, dest: str | Path) -> Mapping[str, bytes | Path]:
    """The files that are carried along to dest: a single file has no place for them."""
    return plan.files if is_folder(Path(dest), _format(dest)) else {}


def _format(dest: str | Path) -> str:
    return FORMATS.get(Path(dest).suffix, "safetensors")


def _check_apart(source: Path, dest: Path) -> None:
    """The source itself may be overwritten, but not a folder around it, and not its inside."""
    a, b = source.resolve(), dest.resolve()
    if a != b and (a.is_relative_to(b) or b.is_relative_to(a)):
        inner, outer = ("the source", "the destination") if a.is_relative_to(b) else ("the destination", "the source")
        raise CheckpointError(f"{dest}: {inner} is inside {outer} {b if a.is_relative_to(b) else a}: write elsewhere")


def _operated(
    source: str | Path, what: str, num_kv_heads: int | None, check: Callable[[AttentionConfig], None], surgery: Surgery
) -> Plan:
    checkpoint = open_checkpoint(source)
    model = read_model(checkpoint)
    for layer in model.config.attention:
        check(layer)
    layers = tuple(replace(a, num_kv_heads=num_kv_heads or a.num_heads) for a in model.config.attention)
    config = replace(model.config, attention=layers)
    weights = Operated(model, config, surgery)
    own = FAMILIES[model.family]
    to = model.family if own.writable and not isinstance(own, GgufFamily) else "huggingface"
    return _plan(checkpoint, model, to, config, weights, None, changed=what)


def _plan(
    checkpoint: Checkpoint,
    model: Model,
    to: str,
    config: ModelConfig,
    weights: TensorMapping,
    dtype: str | None,
    changed: str = "",
) -> Plan:
    checks.choice("dtype", dtype, DTYPES, optional=True)
    origin = _origin(checkpoint, model.family)
    family = _family(to, origin, dtype)
    carried = carried_settings(checkpoint, model.family)
    beside = _with_dtype(carried, checkpoint, dtype) if isinstance(family, HuggingFaceFamily) else {}
    settings = model_settings(family.name, config, beside)
    shifted = shifted_norms(family, config.attention, config)
    foreign = foreign_weights(family.name, config, Widened(weights, shifted))
    infos = {name: _stored_as(family, foreign, name, dtype, shifted) for name in foreign}
    tensors = [_tensor(checkpoint.path, foreign, name, info) for name, info in infos.items()]
    files, notes = carried_files(checkpoint) if not isinstance(family, GgufFamily) else ({}, [])
    if isinstance(family, GgufFamily):
        vocabulary, notes = vocabulary_fields(checkpoint, config.vocab_size or 0)
        settings = gguf_port.file_fields(family.architecture, {**settings, **vocabulary}, infos.values())
        notes += gguf_port.notes(infos.values(), dtype)
    facts = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "layout": model.family,
        "changed": changed,
        "ignored_settings": ", ".join(model.ignored),
        "tensors_left_out": "; ".join(f"{name} {why}" for name, why in model.unread.items()),
    }
    stated = manifest(
        config,
        family.tensors.table,
        family=origin,
        dtypes=(info.stored or info.dtype for _, info, _ in tensors),
        source={name: fact for name, fact in facts.items() if fact},
        settings=carried,
    )
    wide = [name for name, info, _ in tensors if info.dtype == "float32" and shifted & {*foreign.origins(name)}]
    if wide and any(info.dtype in HALF_PRECISION for _, info, _ in tensors):
        notes.append(f"{len(wide)} norm weights, stored as 1 + w, are in float32: 16 bits would lose most of w")
    settings = {} if family.file == MANIFEST else settings
    named = PARAMS if family.file == PARAMS else CONFIG
    return Plan(checkpoint.path, tensors, settings or None, stated, files, tuple(notes), named)


def _with_dtype(carried: Mapping[str, Any], checkpoint: Checkpoint, dtype: str | None) -> dict[str, Any]:
    """The dtype that config.json states, under the names that it has there, is that of the port."""
    stated = {key: checkpoint.settings[key] for key in ("dtype", "torch_dtype") if key in checkpoint.settings}
    return {**carried, **{key: dtype or value for key, value in stated.items()}}


def _origin(checkpoint: Checkpoint, family: str) -> str:
    """The Hugging Face family of a model, which a port of ours remembers."""
    if FAMILIES[family].file == MANIFEST:
        family = str(checkpoint.manifest.get("family", ""))
        if family not in FAMILIES:
            raise CheckpointError(f"{checkpoint.path}: {MANIFEST}: unknown family {family!r}")
    return FAMILIES[family].origin or family


def _family(to: str, origin: str, dtype: str | None) -> Family:
    """The family that a target names, of a model whose Hugging Face family is `origin`."""
    if to == "gguf":
        return gguf_port.gguf_family(origin)
    family = FAMILIES[origin if to == "huggingface" else ALIASES.get(to, to)]
    if dtype == gguf_port.Q8_0 and not isinstance(family, GgufFamily):
        raise ValueError(f"dtype: {dtype} is of GGUF alone, got layout {family.name}: choose another, or layout gguf")
    return family


def _stored_as(family: Family, foreign: ForeignWeights, name: str, dtype: str | None, shifted: set[str]) -> TensorInfo:
    info = foreign.info(name)
    if isinstance(family, GgufFamily):
        return gguf_port.stored_as(name, info, dtype)
    if dtype in HALF_PRECISION and shifted & {*foreign.origins(name)}:
        dtype = "float32"
    return TensorInfo(info.shape, dtype or info.dtype)


def _tensor(path: Path, foreign: ForeignWeights, name: str, info: TensorInfo) -> Tensor:
    if info.dtype == foreign.info(name).dtype:
        return name, info, partial(foreign.__getitem__, name)
    return name, info, lambda: _cast(path, name, foreign[name], info.dtype)


def _cast(path: Path, name: str, array: Array, dtype: str) -> Array:
    """In blocks of rows; a finite number that becomes infinite is refused, whatever else is infinite already."""
    given, cast = np.atleast_1d(array), np.empty(np.atleast_1d(array).shape, np.dtype(dtype))
    rows = max(1, BLOCK_BYTES // max(1, given[:1].nbytes))
    for start in range(0, len(given), rows):
        block = slice(start, start + rows)
        with np.errstate(over="ignore"):
            cast[block] = given[block].astype(cast.dtype)
        lost = int((np.isfinite(given[block]) & ~np.isfinite(cast[block])).sum())
        if lost:
            raise CheckpointError(f"{path}: tensor {name!r}: {lost} of its values do not fit {dtype}")
    return cast.reshape(array.shape)

"""Ports: a checkpoint in another layout, planned from its headers and written one tensor at a time.

A plan knows every tensor that will be written, how it is computed, and the manifest; what cannot be done is
refused while planning, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, weight_shapes
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_weights import heads
from gqa_weights.checkpoint import Checkpoint, CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.families import (
    FAMILIES,
    MANIFEST,
    AttentionModel,
    ForeignWeights,
    Model,
    TensorMapping,
    detect,
    foreign_weights,
    model_settings,
    read_attention,
    read_model,
)
from gqa_weights.manifest import manifest

Array = np.ndarray
Tensor = tuple[str, TensorInfo, Callable[[], Array]]
Surgery = Callable[[int, Mapping[str, Array], AttentionConfig], heads.Layer]

DTYPES = ("float64", "float32", "float16", "bfloat16")
ALIASES = {"meta": "meta.llama", "flax": "flax.nnx.MultiHeadAttention", "keras": "keras.layers.GroupQueryAttention"}
FORMATS = {".npz": "npz", ".orbax": "orbax"}
TARGETS = ("huggingface", *ALIASES, *(name for name, family in FAMILIES.items() if family.writable))


@dataclass(frozen=True)
class Plan:
    """What a port will write. settings: config.json of a family that has one."""

    tensors: list[Tensor]
    settings: Mapping[str, Any] | None
    manifest: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for _, info, _ in self.tensors)


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
        dtype: What every tensor is cast to; kept when None.
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
    plan: Plan, dest: str | Path, *, force: bool = False, done: Callable[[int], None] = lambda size: None
) -> None:
    """Write the planned files.

    Args:
        plan: From `plan`, `plan_pooled` or `plan_expanded`.
        dest: A folder, or a file that ends in .safetensors or .npz; a folder that ends in .orbax is written by orbax.
        force: Overwrite a checkpoint at dest.
        done: Called with the number of bytes of each piece that was written.

    Raises:
        CheckpointError: As `save_checkpoint`. Nothing is left behind.
    """
    format = FORMATS.get(Path(dest).suffix, "safetensors")
    save_checkpoint(
        dest, plan.tensors, format=format, settings=plan.settings, manifest=plan.manifest, force=force, done=done
    )


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
    to = model.family if FAMILIES[model.family].writable else "huggingface"
    return _plan(checkpoint, model, to, config, weights, None, changed=what)


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
            self._kept = {}  # the last layer goes before the next one comes
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
    family = FAMILIES[origin if to == "huggingface" else ALIASES.get(to, to)]
    settings = model_settings(family.name, config)
    foreign = foreign_weights(family.name, config, weights)
    tensors = [_tensor(checkpoint.path, foreign, name, dtype) for name in foreign]
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
        dtypes=(info.dtype for _, info, _ in tensors),
        source={name: fact for name, fact in facts.items() if fact},
    )
    return Plan(tensors, None if family.file == MANIFEST else settings, stated)


def _origin(checkpoint: Checkpoint, family: str) -> str:
    """The Hugging Face family of a model, which a port of ours remembers."""
    if FAMILIES[family].file == MANIFEST:
        family = str(checkpoint.manifest.get("family", ""))
        if family not in FAMILIES:
            raise CheckpointError(f"{checkpoint.path}: {MANIFEST}: unknown family {family!r}")
    return FAMILIES[family].origin or family


def _tensor(path: Path, foreign: ForeignWeights, name: str, dtype: str | None) -> Tensor:
    info = foreign.info(name)
    if dtype is None or dtype == info.dtype:
        return name, info, partial(foreign.__getitem__, name)
    return name, TensorInfo(info.shape, dtype), lambda: _cast(path, name, foreign[name], dtype)


def _cast(path: Path, name: str, array: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        cast = array.astype(np.dtype(dtype))
    if not np.isfinite(cast).all() and np.isfinite(array).all():
        raise CheckpointError(f"{path}: tensor {name!r}: its largest value does not fit {dtype}")
    return cast

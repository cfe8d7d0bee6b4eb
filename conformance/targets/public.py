"""The table of public implementations, and what their signatures cannot state."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conformance.targets.binding import OF_CONSTRUCTOR, binding
from conformance.targets.callables import SIZES, TargetClass, TargetFunction
from conformance.targets.frameworks import framework
from conformance.targets.limits import Limits, limits_of, with_changes
from conformance.targets.protocol import NotATarget
from gqa_spec import packages
from gqa_weights import LAYOUTS

Target = TargetFunction | TargetClass

NOTHING: Mapping[str, Any] = {}
SINGLE = ("float32",)
KERNEL = Limits(value_size=False)
MHA = Limits(grouped=False, value_size=False, wide=False)
MODULE = Limits(value_size=False)


@dataclass(frozen=True)
class Public:
    """name: as `--target` takes it. path: module and name of the adapter. needs: packages, whose versions are stated.
    options: keywords with which the adapter is built or called.
    """

    name: str
    path: str
    arrays: str
    needs: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str:
        """The packages that are not installed; empty where none is."""
        return ", ".join(package for package in self.needs if find_spec(package) is None)

    @property
    def versions(self) -> str:
        return ", ".join(f"{package} {_version(package)}" for package in self.needs)


FAMILY_SETTINGS = {
    "llama": "head_dim qkv_bias out_bias causal rope dropout",
    "mistral": "head_dim causal window rope dropout",
    "qwen3": "head_dim qkv_bias out_bias causal window rope dropout qk_norm",
    "gemma2": "head_dim qkv_bias out_bias causal window scale softcap rope dropout",
    "gemma3": "head_dim qkv_bias out_bias causal window scale rope dropout qk_norm",
    "gpt_oss": "head_dim qkv_bias out_bias causal window rope dropout sinks",
}
ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {"qk_norm": "rms"},
    "gemma3": {"qk_norm": "rms_plus_one"},
    "gpt_oss": {"sinks": True},
}


def _families(here: str) -> Iterator[Public]:
    """transformers' families, each with the attention implementations that its models take."""
    for family, settings in FAMILY_SETTINGS.items():
        limits = Limits(
            value_size=False, cross=False, wide=False, always=ALWAYS.get(family, {}), settings=tuple(settings.split())
        )
        for implementation in ("eager", "sdpa"):
            if (family, implementation) != ("gpt_oss", "sdpa"):  # which its models refuse
                yield Public(
                    f"transformers.{family}.{implementation}", f"{here}.transformers:FamilyAttention", "torch",
                    ("transformers", "torch"), limits, options={"family": family, "implementation": implementation},
                )  # fmt: skip


def _rows() -> tuple[Public, ...]:
    here = "conformance.targets.adapters"
    return (
        Public("torch.sdpa", f"{here}.torch:sdpa", "torch", ("torch",)),
        Public("torch.sdpa.math", f"{here}.torch:sdpa_math", "torch", ("torch",)),
        Public("torch.sdpa.flash", f"{here}.torch:sdpa_flash", "torch", ("torch",), KERNEL),
        Public("torch.flex_attention", f"{here}.torch:flex", "torch", ("torch",)),
        Public("torch.MultiheadAttention", f"{here}.torch:MultiheadAttention", "torch", ("torch",), MHA),
        Public("jax.nn", f"{here}.jax:dot_product_attention", "jax", ("jax", "flax"), KERNEL),
        Public("flax.nnx", f"{here}.jax:nnx_dot_product_attention", "jax", ("flax", "jax"), KERNEL),
        Public("flax.nnx.MultiHeadAttention", f"{here}.jax:MultiHeadAttention", "jax", ("flax", "jax"), MODULE),
        Public("flax.linen", f"{here}.jax:linen_dot_product_attention", "jax", ("flax", "jax"),
               Limits(grouped=False)),
        Public("keras.torch", f"{here}.keras:GroupQueryAttention", "numpy", ("keras", "torch"), MODULE,
               {"KERAS_BACKEND": "torch"}),
        Public("keras.jax", f"{here}.keras:GroupQueryAttention", "numpy", ("keras", "jax"),
               Limits(value_size=False, dtypes=SINGLE), {"KERAS_BACKEND": "jax"}),
        Public("transformers.eager", f"{here}.transformers:eager", "torch", ("transformers", "torch")),
        Public("transformers.sdpa", f"{here}.transformers:sdpa", "torch", ("transformers", "torch")),
        *_families(here),
        Public("onnx.reference", f"{here}.onnx:reference", "numpy", ("onnx",)),
        Public("onnxruntime.Attention", f"{here}.onnx:runtime", "numpy", ("onnxruntime", "onnx"),
               Limits(dtypes=SINGLE)),
        Public("onnxruntime.GroupQueryAttention", f"{here}.onnx:runtime_gqa", "numpy", ("onnxruntime", "onnx"),
               Limits(value_size=False, head_multiple=8, always={"causal": True}, dtypes=SINGLE)),
        Public("litgpt", f"{here}.packages:LitGPT", "torch", ("litgpt", "torch"),
               Limits(value_size=False, cross=False)),
        Public("x_transformers", f"{here}.packages:x_transformers", "torch", ("x_transformers", "torch")),
        Public("tinygrad", f"{here}.packages:tinygrad", "numpy", ("tinygrad",), Limits(dtypes=SINGLE)),
        Public("mlx", f"{here}.packages:mlx", "numpy", ("mlx",), Limits(value_size=False, dtypes=SINGLE)),
    )  # fmt: skip


PUBLIC: Mapping[str, Public] = {row.name: row for row in _rows()}


def find_target(path: str, arrays: str | None = None, changes: Mapping[str, Any] = NOTHING) -> Target:
    """Finds what is to be judged.

    Args:
        path: a name of `PUBLIC`, or MODULE:NAME; the working directory is searched too.
        arrays: the framework whose arrays a function takes ("numpy", "torch", "jax"). Classes of torch and flax
            need none.
        changes: fields of `Limits` that hold whatever the target declares.

    Returns:
        The function or class as a target.

    Raises:
        NotATarget: in one sentence, where there is no such thing.
    """
    row = PUBLIC.get(path)
    if row is not None:
        if row.missing:
            raise NotATarget(f"target {path}: {packages.not_installed(row.missing.split(', '))}")
        os.environ.update(row.environment)
        limits = with_changes(row.limits, changes, f"target {path}")
        return target_of(path, _imported(path, row.path), row.arrays, limits, row.options)
    if ":" not in path.strip(":"):
        raise NotATarget(f"target: expected MODULE:NAME or one of {', '.join(PUBLIC)}, got {path!r}")
    found = _imported(path, path)
    if not callable(found):
        raise NotATarget(f"target {path}: expected a class or a function, got {type(found).__name__}")
    limits = with_changes(limits_of(found, f"target {path}"), changes, f"target {path}")
    return target_of(path, found, arrays or limits.arrays or framework_of(found), limits)


def target_of(name: str, found: Any, arrays: str, limits: Limits, options: Mapping[str, Any] = NOTHING) -> Target:
    """A class, a function that makes a layer, or a function, as a target."""
    kind = framework(arrays, limits.device)
    if limits.weights and limits.weights not in LAYOUTS:
        raise NotATarget(f"--weights: expected one of {', '.join(LAYOUTS)}, got {limits.weights!r}")
    if isinstance(found, type) or _makes_layers(found):
        return TargetClass(name, kind, found, limits, options)
    return TargetFunction(name, kind, partial(found, **options) if options else found, limits)


def _makes_layers(found: Any) -> bool:
    """Whether a function has the parameters of a constructor."""
    takes = binding(found, OF_CONSTRUCTOR, SIZES)
    return all(size in takes.named for size in SIZES[:2]) and not takes.anything


def _imported(target: str, path: str) -> Any:
    module, _, name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise NotATarget(f"target {target}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def framework_of(found: Any) -> str:
    """The framework that a class is a module of; "numpy" for everything else."""
    bases = {base.__module__.split(".")[0] for base in getattr(found, "__mro__", ())}
    return "torch" if "torch" in bases else "jax" if "flax" in bases else "numpy"


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "?"

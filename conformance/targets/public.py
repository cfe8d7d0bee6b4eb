"""Targets by name: public implementations, and anything that can be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from conformance.targets.binding import OF_CONSTRUCTOR, binding
from conformance.targets.callables import SIZES, TargetClass, TargetFunction
from conformance.targets.frameworks import framework
from conformance.targets.limits import Limits, limits_of, with_changes
from conformance.targets.protocol import NotATarget
from conformance.targets.sequences import SequenceFunction, kind_of
from conformance.targets.table import PUBLIC
from gqa_spec import packages
from gqa_weights import LAYOUTS

Target = TargetFunction | TargetClass

NOTHING: Mapping[str, Any] = {}


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
    sequences = kind_of(found)
    if sequences is not None:
        return SequenceFunction(name, kind, found, replace(limits, layout="BNTH"), kind=sequences)
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

"""What a target supports beyond what its signature states: its attribute `gqa_limits`, or a TOML file.

Both hold the fields of `Limits`, those that differ from their defaults:

    dtypes = ["float16", "bfloat16"]
    head_sizes = [64, 128]
    value_size = false
    masks = ["boolean"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from conformance.targets.protocol import NotATarget

DTYPES = ("float64", "float32", "bfloat16", "float16")
MASKS = ("boolean", "floating")
LAYOUTS = ("BNTH", "BTNH")
ARRAYS = ("numpy", "torch", "jax")


@dataclass(frozen=True)
class Limits:
    """What a target takes.

    Attributes:
        dtypes: those that it is judged in; None for float64 and float32.
        head_sizes: the sizes that H may have; empty for any.
        head_multiple: what H must be a multiple of.
        grouped: takes K < N.
        value_size: takes Hv different from H.
        cross: a layer takes a key of its own.
        kv_width: a layer takes a key of another width than the query.
        wide: a layer takes D different from N * H.
        masks: the kinds of masks that it takes.
        always: settings that cannot be switched off.
        settings: the fields of AttentionConfig that a class takes, where its signature does not name them.
        layout: the axes of a function's arrays, "BNTH" or "BTNH".
        weights: the layout of `gqa_weights` in which a class holds its weights; empty for canonical names.
        arrays: whose arrays it takes, "numpy", "torch" or "jax"; empty where its class shows it.
        device: where arrays are made, as in "cuda" or "cpu:1"; empty for the framework's default.
    """

    dtypes: tuple[str, ...] | None = None
    head_sizes: tuple[int, ...] = ()
    head_multiple: int = 1
    grouped: bool = True
    value_size: bool = True
    cross: bool = True
    kv_width: bool = True
    wide: bool = True
    masks: tuple[str, ...] = MASKS
    always: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: tuple[str, ...] | None = None
    layout: str = "BNTH"
    weights: str = ""
    arrays: str = ""
    device: str = ""

    @property
    def judged_in(self) -> tuple[str, ...]:
        """The dtypes that it is judged in unless others are chosen."""
        return ("float64", "float32") if self.dtypes is None else self.dtypes

    def takes_dtype(self, dtype: str) -> bool:
        return self.dtypes is None or dtype in self.dtypes

    def takes_mask(self, boolean: bool) -> bool:
        return MASKS[0 if boolean else 1] in self.masks

    def head_size(self, H: int) -> int:
        """The size that is taken for H: the nearest allowed one, or the next multiple."""
        if self.head_sizes:
            return min(self.head_sizes, key=lambda size: (abs(size - H), size))
        return -(-H // self.head_multiple) * self.head_multiple


CHOICES = {"dtypes": DTYPES, "masks": MASKS, "layout": LAYOUTS, "arrays": ("", *ARRAYS)}


def with_changes(limits: Limits, changes: Mapping[str, Any], where: str) -> Limits:
    """The limits with some fields changed.

    Args:
        limits: what holds where a field is not named.
        changes: fields of `Limits` by name; lists are taken for tuples.
        where: what is named in a message.

    Raises:
        NotATarget: for a name that is no field, or a value that a field cannot have.
    """
    defaults = {f.name: getattr(Limits(), f.name) for f in fields(Limits)}
    given: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in defaults:
            raise NotATarget(f"{where}: expected fields {', '.join(defaults)}, got {name!r}")
        given[name] = value = tuple(value) if isinstance(value, list) else value
        _refuse_wrong(where, name, value, defaults[name])
    return replace(limits, **given)


def _refuse_wrong(where: str, name: str, value: Any, default: Any) -> None:
    kind = tuple if name in ("dtypes", "settings") else Mapping if name == "always" else type(default)
    if not isinstance(value, kind) and not (value is None and default is None):
        raise NotATarget(f"{where}: {name}: expected {kind.__name__}, got {value!r}")
    for part in value if isinstance(value, tuple) else (value,):
        if name in CHOICES and part not in CHOICES[name]:
            raise NotATarget(f"{where}: {name}: expected one of {', '.join(filter(None, CHOICES[name]))}, got {part!r}")


def read_limits(path: Path) -> dict[str, Any]:
    """The fields in a TOML file.

    Raises:
        NotATarget: where it cannot be read, or holds what is no field of `Limits`.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NotATarget(f"--limits {path}: {error}") from error
    with_changes(Limits(), found, f"--limits {path}")
    return found


def limits_of(found: Any, where: str) -> Limits:
    """The attribute `gqa_limits` of a function or class: a mapping or a `Limits`."""
    declared = getattr(found, "gqa_limits", Limits())
    return declared if isinstance(declared, Limits) else with_changes(Limits(), declared, f"{where}: gqa_limits")

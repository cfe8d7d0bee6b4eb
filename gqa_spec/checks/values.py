"""Plain values: numbers, booleans, choices, classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def integer(name: str, value: Any, *, at_least: int, symbol: str = "") -> None:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name}: expected {symbol or name} >= {at_least}, got {value}")


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    if optional and value is None:
        return
    if not is_number(value):
        raise TypeError(f"{name}: expected a number{' or None' if optional else ''}, got {value!r}")
    bounds = [f">= {at_least}"] * (at_least is not None) + [f"> {above}"] * (above is not None)
    bounds += [f"< {below}"] * (below is not None)
    inside = (at_least is None or value >= at_least) and (above is None or value > above)
    finite = -math.inf < value < math.inf  # not math.isfinite, which torch.compile cannot trace for its symbolic floats
    if not (finite and inside and (below is None or value < below)):
        raise ValueError(f"{name}: expected a finite number {' and '.join(bounds)}, got {value}")


def boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def choice(name: str, value: Any, allowed: tuple[str, ...], *, optional: bool = False) -> None:
    if not (value in allowed or (optional and value is None)):
        raise ValueError(f"{name}: expected {', '.join(allowed)}{' or None' if optional else ''}, got {value!r}")


def instance(name: str, value: Any, kind: Any, *, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        names = " or ".join(k.__name__ for k in getattr(kind, "__args__", (kind,)))
        raise TypeError(f"{name}: expected {names}{' or None' if optional else ''}, got {type(value).__name__}")


def mesh_axes(given: Mapping[str, str | None], names: Sequence[str]) -> None:
    """Axes of a mesh by the argument that names each: they exist, and no two arguments name the same."""
    chosen = [axis for axis in given.values() if axis is not None]
    for argument, axis in given.items():
        if axis is not None and axis not in names:
            raise ValueError(f"{argument}: expected an axis of the mesh, {', '.join(names)}, got {axis!r}")
    if not chosen or len(set(chosen)) < len(chosen):
        got = ", ".join(f"{argument}={axis!r}" for argument, axis in given.items())
        raise ValueError(f"{', '.join(given)}: expected at least one axis of the mesh, each at most once, got {got}")


def mesh_axis_types(explicit: Sequence[str], count: int) -> None:
    """JAX: the axes of a mesh that are Explicit, for which the sharding of each result would have to be given."""
    if explicit:
        raise ValueError(
            f"mesh: expected axes of AxisType.Auto, got Explicit axes {', '.join(explicit)}: "
            f"make the mesh with axis_types=(AxisType.Auto,) * {count}"
        )


def context_length(length: int, context: int) -> None:
    """Positions are cut into equal parts."""
    if length % context:
        raise ValueError(f"query: expected context = {context}, the devices of the mesh's axis, to divide T = {length}")

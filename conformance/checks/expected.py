"""What the float64 oracle gives for a call, and how far an answer may be from it (SPEC 15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.cases import inputs
from conformance.cases.compare import EPSILON, bound, error_of
from conformance.cases.inputs import Call
from conformance.cases.table import Case
from conformance.targets import Backend

Array = np.ndarray


@dataclass(frozen=True)
class Expected:
    """What the float64 oracle gives for a call, and how far an answer may be from it. own_tables: what RoPE tables that
    the target makes itself may move it: SPEC 10 rounds frequencies to float32, others do not.
    """

    arrays: tuple[Array, Array]
    allowed: tuple[float, float]
    own_tables: float = 0.0


def layer_expected(
    case: Case, dtype: str, weights: dict[str, Array], call: Call, *, own_rope: bool = False
) -> Expected:
    """The NumPy backend in float64 on the same rounded numbers."""

    def run(kind: str) -> Any:
        layer = Backend("numpy").layer(case.config, kind)
        layer.load({name: x.astype(inputs.DTYPES[kind]) for name, x in weights.items()})
        return layer(in_dtype(call, kind))

    found = _expected(run, dtype)
    if not own_rope:
        return found
    moved = case.S * EPSILON["float32"]
    return Expected(found.arrays, (max(found.allowed[0], moved), max(found.allowed[1], moved)), moved)


def kernel_expected(dtype: str, call: Call) -> Expected:
    return _expected(lambda kind: Backend("numpy").attention(in_dtype(call, kind)), dtype)


def _expected(run: Any, dtype: str) -> Expected:
    oracle = run("float64")
    plain = oracle if dtype == "float64" else run(dtype)
    allowed = tuple(bound(dtype, error_of(p, o)) for p, o in zip(plain, oracle, strict=True))
    return Expected(oracle, allowed)  # type: ignore[arg-type]


def in_dtype(call: Call, dtype: str) -> Call:
    query, key, value = (None if x is None else x.astype(inputs.DTYPES[dtype]) for x in call.arguments[:3])
    keywords = {
        name: x.astype(inputs.DTYPES[dtype]) if name in ("sinks", "dropout_multiplier") else x
        for name, x in call.keywords.items()
    }
    return Call(query, key, value, call.mask, keywords)

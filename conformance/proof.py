"""The checks: each compares one array of one case and says what it found. Nothing here prints.

Pairs of wings: weights go from a source wing to the others through `export_weights` and `load_weights`, then outputs
and attention weights of both must agree with each other and with the float64 oracle (SPEC 15).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance import inputs
from conformance.cases import Case
from conformance.compare import EPSILON, Difference, bound, compare, error_of
from conformance.inputs import Call
from conformance.targets import ForeignClass, Kernel, Unsupported, Wing

Array = np.ndarray
QUANTITIES = ("output", "weights")


@dataclass(frozen=True)
class Check:
    """One comparison. column: who against whom, in which dtype. error: in units of the dtype's epsilon."""

    row: str
    case: str
    column: str
    quantity: str
    error: float
    verdict: str  # "pass", "fail" or "unsupported"
    reason: str = ""


def verdict(case: Case, column: str, quantity: str, found: Difference) -> Check:
    return Check(
        case.grouping, case.name, column, quantity, found.error, "fail" if found.reason else "pass", found.reason
    )


def unsupported(case: Case, column: str, quantity: str, reason: str) -> Check:
    return Check(case.grouping, case.name, column, quantity, 0.0, "unsupported", reason)


@dataclass(frozen=True)
class Reference:
    """What the float64 oracle gives for a call, and how far the plain NumPy computation in the dtype is from it."""

    arrays: tuple[Array, Array]
    allowed: tuple[float, float]


def layer_reference(case: Case, dtype: str, weights: dict[str, Array], call: Call) -> Reference:
    """The NumPy wing in float64 on the same rounded numbers."""

    def run(kind: str) -> Any:
        layer = Wing("numpy").layer(case.config, kind)
        layer.load({name: x.astype(inputs.DTYPES[kind]) for name, x in weights.items()})
        return layer(_in_dtype(call, kind))

    return _reference(run, dtype)


def kernel_reference(dtype: str, call: Call) -> Reference:
    return _reference(lambda kind: Wing("numpy").attention(_in_dtype(call, kind)), dtype)


def _reference(run: Any, dtype: str) -> Reference:
    oracle = run("float64")
    plain = oracle if dtype == "float64" else run(dtype)
    allowed = tuple(bound(dtype, error_of(p, o)) for p, o in zip(plain, oracle, strict=True))
    return Reference(oracle, allowed)  # type: ignore[arg-type]


def _in_dtype(call: Call, dtype: str) -> Call:
    query, key, value = (None if x is None else x.astype(inputs.DTYPES[dtype]) for x in call.arguments[:3])
    keywords = {
        name: x.astype(inputs.DTYPES[dtype]) if name in ("sinks", "dropout_multiplier") else x
        for name, x in call.keywords.items()
    }
    return Call(query, key, value, call.mask, keywords)


def wing_checks(case: Case, dtype: str, wings: tuple[str, ...]) -> Iterator[Check]:
    """Every direction between two wings: source's weights, exported and loaded, must give source's results."""
    layers = {name: Wing(name).layer(case.config, dtype) for name in wings}
    call = inputs.layer_call(case, dtype)
    for seed, source in enumerate(wings):
        drawn = inputs.weights(case, dtype, seed)
        layers[source].load(drawn)
        weights = layers[source].module.export_weights()
        reference = layer_reference(case, dtype, drawn, call)
        expected = layers[source](call)
        for other in wings:
            if other != source:
                layers[other].load(weights)
                column = f"{source} to {other}, {dtype}"
                yield _port_check(case, column, layers[other].module.export_weights(), drawn)
                yield from _agreement(case, column, dtype, layers[other](call), expected, reference)


def _port_check(case: Case, column: str, ported: dict[str, Array], drawn: dict[str, Array]) -> Check:
    """The weights after the port, bit for bit those that were drawn."""
    same = list(ported) == list(drawn) and all(ported[n].tobytes() == drawn[n].tobytes() for n in drawn)
    return verdict(case, column, "port", Difference(0.0) if same else Difference(np.inf, "not bit for bit"))


def _agreement(case: Case, column: str, dtype: str, got: Any, expected: Any, reference: Reference) -> Iterator[Check]:
    """Both sides within the bound of the oracle; in float64 also of each other, which is the error that is shown."""
    for i, quantity in enumerate(QUANTITIES):
        oracle, allowed = reference.arrays[i], reference.allowed[i]
        faults = [compare(side[i], oracle, dtype, allowed).reason for side in (got, expected)]
        between = error_of(got[i], expected[i])
        if dtype == "float64" and not between <= allowed:
            faults.append(f"the two wings differ by {between:.3g} of the largest value")
        reason = next((fault for fault in faults if fault), "")
        yield verdict(case, column, quantity, Difference(between / EPSILON[dtype], reason))


def kernel_checks(case: Case, dtype: str, target: Wing | Kernel) -> Iterator[Check]:
    """A kernel against the oracle."""
    call = inputs.kernel_call(case, dtype)
    run = target.attention if isinstance(target, Wing) else target
    yield from _target_checks(case, dtype, f"{target.name} kernel, {dtype}", run, kernel_reference(dtype, call), call)


def foreign_checks(case: Case, dtype: str, target: ForeignClass) -> Iterator[Check]:
    """Anybody's layer against the oracle, both with the same weights."""
    column, call, weights = f"{target.name}, {dtype}", inputs.layer_call(case, dtype), inputs.weights(case, dtype)
    try:
        layer = target.layer(case.config, dtype)
    except Unsupported as reason:
        yield from (unsupported(case, column, quantity, str(reason)) for quantity in QUANTITIES)
        return
    except Exception as error:
        yield verdict(case, column, "output", Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return

    def run(call: Call) -> Any:
        layer.load(weights)
        return layer(call)

    yield from _target_checks(case, dtype, column, run, layer_reference(case, dtype, weights, call), call)


def _target_checks(case: Case, dtype: str, column: str, run: Any, reference: Reference, call: Call) -> Iterator[Check]:
    try:
        got = run(call)
    except Unsupported as reason:
        yield from (unsupported(case, column, quantity, str(reason)) for quantity in QUANTITIES)
        return
    except Exception as error:  # whatever a target raises is a finding about the target
        yield verdict(case, column, "output", Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return
    for i, quantity in enumerate(QUANTITIES):
        if got[i] is None:
            yield unsupported(case, column, quantity, "returns none")
        else:
            yield verdict(case, column, quantity, compare(got[i], reference.arrays[i], dtype, reference.allowed[i]))

"""Our backends against each other and against the float64 oracle.

Weights go from a source backend to the others through `export_weights` and `load_weights`; then outputs and attention
weights of both must agree with each other and with the oracle (SPEC 15).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from conformance.cases import inputs
from conformance.cases.compare import EPSILON, Difference, compare, error_of
from conformance.cases.table import Case
from conformance.checks.check import QUANTITIES, Check, verdict
from conformance.checks.expected import Expected, kernel_expected, layer_expected
from conformance.targets import Backend

Array = np.ndarray


def backend_checks(case: Case, dtype: str, backends: tuple[str, ...]) -> Iterator[Check]:
    """Every direction between two backends: source's weights, exported and loaded, must give source's results."""
    layers = {name: Backend(name).layer(case.config, dtype) for name in backends}
    call = inputs.layer_call(case, dtype)
    for seed, source in enumerate(backends):
        drawn = inputs.weights(case, dtype, seed)
        layers[source].load(drawn)
        weights = layers[source].module.export_weights()
        reference = layer_expected(case, dtype, drawn, call)
        expected = layers[source](call)
        for other in backends:
            if other != source:
                layers[other].load(weights)
                column = f"{source} to {other}, {dtype}"
                yield _port_check(case, column, layers[other].module.export_weights(), drawn)
                yield from _agreement(case, column, dtype, layers[other](call), expected, reference)


def _port_check(case: Case, column: str, ported: dict[str, Array], drawn: dict[str, Array]) -> Check:
    """The weights after the port, bit for bit those that were drawn."""
    same = list(ported) == list(drawn) and all(ported[n].tobytes() == drawn[n].tobytes() for n in drawn)
    return verdict(case, column, "port", Difference(0.0) if same else Difference(np.inf, "not bit for bit"))


def _agreement(case: Case, column: str, dtype: str, got: Any, expected: Any, reference: Expected) -> Iterator[Check]:
    """Both sides within the bound of the oracle; in float64 also of each other, which is the error that is shown."""
    for i, quantity in enumerate(QUANTITIES):
        oracle, allowed = reference.arrays[i], reference.allowed[i]
        faults = [compare(side[i], oracle, dtype, allowed).reason for side in (got, expected)]
        between = error_of(got[i], expected[i])
        if dtype == "float64" and not between <= allowed:
            faults.append(f"the two backends differ by {between:.3g} of the largest value")
        reason = next((fault for fault in faults if fault), "")
        yield verdict(case, column, quantity, Difference(between / EPSILON[dtype], reason))


def kernel_checks(case: Case, dtype: str, backend: Backend) -> Iterator[Check]:
    """A backend's kernel against the oracle."""
    call = inputs.kernel_call(case, dtype)
    reference, got = kernel_expected(dtype, call), backend.attention(call)
    for i, quantity in enumerate(QUANTITIES):
        found = compare(got[i], reference.arrays[i], dtype, reference.allowed[i])  # type: ignore[arg-type]
        yield verdict(case, f"{backend.name} kernel, {dtype}", quantity, found)

"""The checks: each compares one array of one case and says what it found. Nothing here prints.

Pairs of backends: weights go from a source backend to the others through `export_weights` and `load_weights`, then
outputs and attention weights of both must agree with each other and with the float64 oracle (SPEC 15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases import inputs
from conformance.cases.compare import EPSILON, Difference, bound, compare, error_of
from conformance.cases.inputs import Call
from conformance.cases.table import ALL_FEATURES, Case
from conformance.dialects import kernel as alternatives
from conformance.dialects import layer as alternative_layer
from conformance.dialects.conventions import Dialect
from conformance.dialects.explain import explain
from conformance.targets import Backend, ForeignClass, Target, Unsupported, fit
from conformance.targets.foreign import ChangedInputs, WrongType
from conformance.targets.frameworks import Framework

Array = np.ndarray
QUANTITIES = ("output", "weights")
GRADIENTS = "gradients"


def quantities(case: Case, framework: Framework) -> tuple[str, ...]:
    """What is compared of a target's answer. Gradients need a framework that has them; one grouping says it all."""
    asked = framework.vjp is not None and case.grouping == ALL_FEATURES
    return (*QUANTITIES, GRADIENTS) if asked else QUANTITIES


@dataclass(frozen=True)
class Check:
    """One comparison. column: who against whom, in which dtype. error: in units of the dtype's epsilon.
    explanation: the dialect that reproduces what failed, if one does.
    """

    row: str
    case: str
    column: str
    quantity: str
    error: float
    verdict: str  # "pass", "fail" or "unsupported"
    reason: str = ""
    explanation: str = ""


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
    """The NumPy backend in float64 on the same rounded numbers."""

    def run(kind: str) -> Any:
        layer = Backend("numpy").layer(case.config, kind)
        layer.load({name: x.astype(inputs.DTYPES[kind]) for name, x in weights.items()})
        return layer(in_dtype(call, kind))

    return _reference(run, dtype)


def kernel_reference(dtype: str, call: Call) -> Reference:
    return _reference(lambda kind: Backend("numpy").attention(in_dtype(call, kind)), dtype)


def _reference(run: Any, dtype: str) -> Reference:
    oracle = run("float64")
    plain = oracle if dtype == "float64" else run(dtype)
    allowed = tuple(bound(dtype, error_of(p, o)) for p, o in zip(plain, oracle, strict=True))
    return Reference(oracle, allowed)  # type: ignore[arg-type]


def in_dtype(call: Call, dtype: str) -> Call:
    query, key, value = (None if x is None else x.astype(inputs.DTYPES[dtype]) for x in call.arguments[:3])
    keywords = {
        name: x.astype(inputs.DTYPES[dtype]) if name in ("sinks", "dropout_multiplier") else x
        for name, x in call.keywords.items()
    }
    return Call(query, key, value, call.mask, keywords)


def backend_checks(case: Case, dtype: str, backends: tuple[str, ...]) -> Iterator[Check]:
    """Every direction between two backends: source's weights, exported and loaded, must give source's results."""
    layers = {name: Backend(name).layer(case.config, dtype) for name in backends}
    call = inputs.layer_call(case, dtype)
    for seed, source in enumerate(backends):
        drawn = inputs.weights(case, dtype, seed)
        layers[source].load(drawn)
        weights = layers[source].module.export_weights()
        reference = layer_reference(case, dtype, drawn, call)
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


def _agreement(case: Case, column: str, dtype: str, got: Any, expected: Any, reference: Reference) -> Iterator[Check]:
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
    reference, got = kernel_reference(dtype, call), backend.attention(call)
    for i, quantity in enumerate(QUANTITIES):
        found = compare(got[i], reference.arrays[i], dtype, reference.allowed[i])  # type: ignore[arg-type]
        yield verdict(case, f"{backend.name} kernel, {dtype}", quantity, found)


def target_checks(case: Case, dtype: str, target: Target) -> Iterator[Check | None]:
    """Anybody's function or class against the oracle. Whatever it does wrong is a finding about it, never an end of the
    run. Yields None once the target has answered, so that a time limit can tell its time from ours.
    """
    column, differentiated = f"{target.name}, {dtype}", GRADIENTS in quantities(case, target.framework)
    try:
        if dtype not in target.limits.dtypes:
            raise Unsupported(f"takes no {dtype}")
        case = fit(case, target.limits, layer=isinstance(target, ForeignClass))
        asked = _asked(case, dtype, target)
        got, again = asked.run(), asked.run()
    except Unsupported as reason:
        yield from (unsupported(case, column, quantity, str(reason)) for quantity in QUANTITIES)
        return
    except (ChangedInputs, WrongType) as fault:
        yield verdict(case, column, "output", Difference(np.inf, str(fault)))
        return
    except Exception as error:
        yield verdict(case, column, "output", Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return
    yield None
    explanation, right = "", True
    for i, quantity in enumerate(QUANTITIES):
        answer, second = got[i], again[i]
        if answer is None:
            yield unsupported(case, column, quantity, "returns none")
            continue
        found = compare(answer, asked.reference.arrays[i], dtype, asked.reference.allowed[i])
        if second is None or not error_of(second, answer) <= asked.reference.allowed[i]:
            found = Difference(np.inf, "not deterministic: a second call gives something else")
        elif found.reason:
            explanation = explanation or explain(asked.in_dialect, got, dtype, case.feature.clause)
        right &= quantity != "output" or not found.reason
        check = verdict(case, column, quantity, found)
        yield replace(check, explanation=explanation) if found.reason else check
    if differentiated:
        yield from _gradient_check(case, column, dtype, asked, right)


def _gradient_check(case: Case, column: str, dtype: str, asked: _Asked, right: bool) -> Iterator[Check | None]:
    """The gradients of every floating argument by a random one of the output. Those of a wrong output mean nothing."""
    if not right:
        yield unsupported(case, column, GRADIENTS, "its output differs")
        return
    d_output = inputs.output_gradient(case, asked.reference.arrays[0].shape).astype(inputs.DTYPES[dtype])
    try:
        got = asked.gradients(d_output)
    except (Unsupported, NotImplementedError) as reason:
        yield unsupported(case, column, GRADIENTS, str(reason).split("\n")[0])
        return
    except Exception as error:
        yield verdict(case, column, GRADIENTS, Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return
    yield None
    oracle = asked.pulled_back("float64", d_output)
    plain = oracle if dtype == "float64" else asked.pulled_back(dtype, d_output)
    worst = Difference(0.0)
    for name in got:
        # twice what an output may be off: a gradient goes through the roundings of two passes
        own = 2 * bound(dtype, error_of(plain[name], oracle[name]))
        found = compare(got[name], oracle[name], dtype, 1e-11 if dtype == "float64" else own)
        if found.reason:
            worst = Difference(found.error, f"of {name}: {found.reason}")
            break
        worst = max(worst, found, key=lambda difference: difference.error)
    yield verdict(case, column, GRADIENTS, worst)


@dataclass(frozen=True)
class _Asked:
    """A case put to a target: how to run it, what the oracle gives, what a dialect would give. gradients: the target's,
    by that of its output; pulled_back: ours, in a dtype.
    """

    run: Callable[[], tuple[Array, Array | None]]
    reference: Reference
    in_dialect: Callable[[Dialect], tuple[Array, Array | None]]
    gradients: Callable[[Array], dict[str, Array]]
    pulled_back: Callable[[str, Array], dict[str, Array]]


def _asked(case: Case, dtype: str, target: Target) -> _Asked:
    if isinstance(target, ForeignClass):
        return _asked_layer(case, dtype, target)
    call = inputs.kernel_call(case, dtype)
    wide = in_dtype(call, "float64")

    def pulled_back(kind: str, d_context: Array) -> dict[str, Array]:
        ours = in_dtype(call, kind)
        vjp = gqa_numpy.grouped_query_attention_vjp(*ours.arguments, **ours.keywords)[1]
        return vjp(d_context.astype(inputs.DTYPES[kind]))

    return _Asked(
        lambda: target(call),
        kernel_reference(dtype, call),
        lambda dialect: alternatives.Kernel(dialect)(*wide.arguments, **wide.keywords),
        lambda d_context: target.gradients(call, d_context),
        pulled_back,
    )


def _asked_layer(case: Case, dtype: str, target: ForeignClass) -> _Asked:
    call, weights = inputs.layer_call(case, dtype), inputs.weights(case, dtype)
    layer = target.layer(case.config, dtype)
    layer.load(weights)
    wide, wide_weights = in_dtype(call, "float64"), {name: x.astype(np.float64) for name, x in weights.items()}

    def in_dialect(dialect: Dialect) -> tuple[Array, Array | None]:
        spoken = alternative_layer.Layer(case.config, dialect).load_weights(wide_weights)
        return spoken(*wide.arguments, **wide.keywords)

    def pulled_back(kind: str, d_output: Array) -> dict[str, Array]:
        ours, oracle = in_dtype(call, kind), Backend("numpy").layer(case.config, kind)
        oracle.load({name: x.astype(inputs.DTYPES[kind]) for name, x in weights.items()})
        found = oracle.module.vjp(*ours.arguments, **ours.keywords)[1](d_output.astype(inputs.DTYPES[kind]))
        if call.value is None:  # a query that is key and value too gets the sum of all three
            found["query"] = found["query"] + found["key"] + found["value"]
        return found

    return _Asked(
        lambda: layer(call),
        layer_reference(case, dtype, weights, call),
        in_dialect,
        lambda d_output: layer.gradients(call, d_output),
        pulled_back,
    )

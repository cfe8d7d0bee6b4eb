"""Anybody's function or class against the float64 oracle: outputs, attention weights, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases import inputs
from conformance.cases.compare import Difference, bound, compare, error_of
from conformance.cases.table import Case
from conformance.checks.check import GRADIENTS, QUANTITIES, Check, quantities, unsupported, verdict
from conformance.checks.expected import Expected, in_dtype, kernel_expected, layer_expected
from conformance.dialects.explain import TOLERANCE, relation
from conformance.targets import Backend, Target, TargetClass, Unsupported, fit
from conformance.targets.callables import arguments
from conformance.targets.protocol import ChangedInputs, WrongType

Array = np.ndarray


def target_checks(case: Case, dtype: str, target: Target) -> Iterator[Check | None]:
    """One case in one dtype: a function or class against the oracle. Its errors are findings and never end the run.
    Yields None when the target has answered, so that the time limit counts its time and not ours.
    """
    column, differentiated = f"{target.name}, {dtype}", GRADIENTS in quantities(case, target.framework)
    try:
        if not target.limits.takes_dtype(dtype):
            raise Unsupported(f"takes no {dtype}")
        case = fit(case, target.limits, layer=isinstance(target, TargetClass))
        prepared = _prepare(case, dtype, target)
        got = prepared.run()
        started = perf_counter()  # of the second call: the first may compile
        again = prepared.run()
        seconds = perf_counter() - started
    except (Unsupported, NotImplementedError) as reason:
        yield from (unsupported(case, column, quantity, _line(reason)) for quantity in QUANTITIES)
        return
    except (ChangedInputs, WrongType) as fault:
        yield verdict(case, column, "output", Difference(np.inf, str(fault)))
        return
    except Exception as error:
        yield verdict(case, column, "output", Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return
    yield None
    right = True
    for i, quantity in enumerate(QUANTITIES):
        answer, second = got[i], again[i]
        if answer is None:
            yield unsupported(case, column, quantity, "returns none")
            continue
        found = compare(answer, prepared.expected.arrays[i], dtype, prepared.expected.allowed[i])
        if second is None or not error_of(second, answer) <= prepared.expected.allowed[i]:
            found = Difference(np.inf, "not deterministic: a second call gives something else")
        right &= quantity != "output" or not found.reason
        check = replace(verdict(case, column, quantity, found), seconds=seconds)
        yield replace(check, answer=got) if found.reason else check
    if differentiated:
        yield from _gradient_check(case, column, dtype, prepared, right)


def _line(reason: Exception) -> str:
    return str(reason).split("\n")[0] or type(reason).__name__


def _gradient_check(case: Case, column: str, dtype: str, prepared: _Prepared, right: bool) -> Iterator[Check | None]:
    """The gradients of every floating argument by a random one of the output. Those of a wrong output mean nothing."""
    if not right:
        yield unsupported(case, column, GRADIENTS, "its output differs")
        return
    d_output = inputs.output_gradient(case, prepared.expected.arrays[0].shape).astype(inputs.DTYPES[dtype])
    if case.feature.mask == "finfo.min":  # where every key has that bias, whether the sum is clamped decides
        d_output[..., 0, :] = 0
    try:
        got = prepared.gradients(d_output)
    except (Unsupported, NotImplementedError) as reason:
        yield unsupported(case, column, GRADIENTS, _line(reason))
        return
    except Exception as error:
        yield verdict(case, column, GRADIENTS, Difference(np.inf, f"raised {type(error).__name__}: {error}"))
        return
    yield None
    oracle = prepared.our_gradients("float64", d_output)
    plain = oracle if dtype == "float64" else prepared.our_gradients(dtype, d_output)
    worst = Difference(0.0)
    for name in got:
        # twice what an output may be off: a gradient goes through the roundings of two passes
        own = 2 * bound(dtype, error_of(plain[name], oracle[name]))
        allowed = max(1e-11 if dtype == "float64" else own, prepared.expected.own_tables)
        judged = _in_its_dtype(got[name], prepared.given[name], dtype)
        found = compare(judged, oracle[name], dtype, allowed, exact_zeros=False)
        if found.reason:
            worst = Difference(found.error, f"of {name}: {found.reason}")
            break
        worst = max(worst, found, key=lambda difference: difference.error)
    check = verdict(case, column, GRADIENTS, worst)
    yield replace(check, explanation=_gradient_relation(got, oracle, dtype)) if worst.reason else check


def _in_its_dtype(gradient: Array, argument: Array, dtype: str) -> Array:
    """A gradient in the case's dtype where it has its argument's, as that of a float32 mask of 16-bit queries does."""
    return gradient.astype(inputs.DTYPES[dtype]) if gradient.dtype == argument.dtype else gradient


def _gradient_relation(got: dict[str, Array], oracle: dict[str, Array], dtype: str) -> str:
    """A factor or a shift that explains each gradient that is wrong, where there is one."""
    wrong = [n for n in got if error_of(got[n], oracle[n]) > 10 * TOLERANCE[dtype]]
    found = {name: relation(got[name], oracle[name], TOLERANCE[dtype]) for name in wrong}
    if not wrong or not all(found.values()):
        return ""
    return "; ".join(f"gradient of {name}: {words}" for name, words in found.items())


@dataclass(frozen=True)
class _Prepared:
    """A case made ready for a target. run: the target's answer. expected: the oracle's. gradients: the target's, from
    that of its output. our_gradients: gqa_numpy's in a dtype. given: the arguments by name.
    """

    run: Callable[[], tuple[Array, Array | None]]
    expected: Expected
    gradients: Callable[[Array], dict[str, Array]]
    our_gradients: Callable[[str, Array], dict[str, Array]]
    given: dict[str, Any]


def _prepare(case: Case, dtype: str, target: Target) -> _Prepared:
    if isinstance(target, TargetClass):
        return _prepare_class(case, dtype, target)
    with np.errstate(over="ignore"):  # refused at once
        call = inputs.kernel_call(case, dtype)
    _refuse_overflow(case, dtype, call)

    def our_gradients(kind: str, d_context: Array) -> dict[str, Array]:
        ours = in_dtype(call, kind)
        vjp = gqa_numpy.grouped_query_attention_vjp(*ours.arguments, **ours.keywords)[1]
        return vjp(d_context.astype(inputs.DTYPES[kind]))

    return _Prepared(
        lambda: target(call),
        kernel_expected(dtype, call),
        lambda d_context: target.gradients(call, d_context),
        our_gradients,
        arguments(call),
    )


def _refuse_overflow(case: Case, dtype: str, call: inputs.Call) -> None:
    """A case whose numbers are too large for a dtype is none in it."""
    arrays = [x for x in call.arguments[:3] if x is not None]
    if not case.feature.poison and not all(np.isfinite(x.astype(np.float64)).all() for x in arrays):
        raise Unsupported(f"its numbers do not fit {dtype}")


def _prepare_class(case: Case, dtype: str, target: TargetClass) -> _Prepared:
    call, weights = inputs.layer_call(case, dtype), inputs.weights(case, dtype)
    layer = target.layer(case.config, dtype)
    layer.load(weights)

    def our_gradients(kind: str, d_output: Array) -> dict[str, Array]:
        ours, oracle = in_dtype(call, kind), Backend("numpy").layer(case.config, kind)
        oracle.load({name: x.astype(inputs.DTYPES[kind]) for name, x in weights.items()})
        found = oracle.module.vjp(*ours.arguments, **ours.keywords)[1](d_output.astype(inputs.DTYPES[kind]))
        if call.value is None:  # a value that defaults to the key sends it its gradient, and so does a key
            found["key"] = found["key"] + found["value"]
        if call.key is None:
            found["query"] = found["query"] + found["key"]
        return found

    return _Prepared(
        lambda: layer(call),
        layer_expected(case, dtype, weights, call, own_rope="rope" in target.limits.always),
        lambda d_output: layer.gradients(call, d_output),
        our_gradients,
        arguments(call),
    )

"""Packed and paged functions against the float64 oracle, which is given one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from conformance.cases.compare import Difference, bound, compare, error_of
from conformance.cases.inputs import kernel_call
from conformance.cases.sequences import ROW, SequenceCase, Sequences, compared, expected, sequences
from conformance.cases.table import Case
from conformance.checks.check import Check
from conformance.mutants import MUTANTS
from conformance.reference.sequences import ReferencePaged, computed
from conformance.targets import Limits, Unsupported, fit
from conformance.targets.protocol import ChangedInputs, WrongType
from conformance.targets.sequences import SequenceFunction, fit_sequences, of_batch, rows

Array = np.ndarray
CLOSE = {"float64": 1e-9, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}  # of the largest value


def sequence_checks(case: SequenceCase, dtype: str, target: SequenceFunction) -> Iterator[Check | None]:
    """One case; yields None once the target has answered, as `target_checks` does."""

    def check(verdict: str, reason: str = "", error: float = 0.0) -> Check:
        column = f"{target.name}, {dtype}"
        return Check(ROW[case.kind], case.full_name, column, "output", error, verdict, reason)

    try:
        if not target.limits.takes_dtype(dtype):
            raise Unsupported(f"takes no {dtype}")
        case = fit_sequences(case, target.limits)
        found = sequences(case, dtype)
        got = target.outputs(case, found)
    except (Unsupported, NotImplementedError) as reason:
        yield check("unsupported", str(reason).split("\n")[0] or type(reason).__name__)
        return
    except (ChangedInputs, WrongType) as fault:
        yield check("fail", str(fault), np.inf)
        return
    except Exception as error:
        yield check("fail", f"raised {type(error).__name__}: {error}", np.inf)
        return
    yield None
    difference = _difference(case, found, dtype, got)
    if not difference.reason:
        yield check("pass", "", difference.error)
        return
    yield replace(check("fail", difference.reason, difference.error), answer=(got, None))


def _difference(case: SequenceCase, found: Sequences, dtype: str, got: Array) -> Difference:
    oracle, plain = (compared(case, found, expected(found, kind)) for kind in ("float64", dtype))
    return compare(compared(case, found, got), oracle, dtype, bound(dtype, error_of(plain, oracle)))


def explained(
    checks: Sequence[Check], cases: Mapping[str, SequenceCase], batches: Mapping[str, Case], limits: Limits
) -> list[Check]:
    """With the planted fault that reproduces every failure of these cases, and leaves right what passed.

    cases, batches: by their names; a failure of a batch gets the same name where the fault reproduces it.
    """
    mine = [check for check in checks if check.case in cases and check.verdict != "unsupported"]
    mutant = _cause(mine, cases, limits) if any(check.answer is not None for check in mine) else None
    words = "" if mutant is None else (mutant.__doc__ or "").split("\n")[0].rstrip(".")

    def named(check: Check) -> Check:
        if check.answer is None:
            return check
        if check.case in cases:
            return replace(check, explanation=words, answer=None)
        batch = batches.get(check.case)
        found = mutant is not None and batch is not None and _predicts_batch(mutant, batch, limits, check)
        return replace(check, explanation=words, answer=None) if found else check

    return [named(check) for check in checks]


def _cause(checks: Sequence[Check], cases: Mapping[str, SequenceCase], limits: Limits) -> type | None:
    kind = next(iter(cases.values())).kind
    fits = {check.case: fit_sequences(cases[check.case], limits) for check in checks}
    return next((m for m in MUTANTS[kind] if all(_predicts(m, fits[check.case], check) for check in checks)), None)


def _predicts_batch(mutant: Callable[[], Any], case: Case, limits: Limits, check: Check) -> bool:
    dtype = check.column.rpartition(", ")[2]
    call = kernel_call(fit(case, limits, layer=False), dtype)
    kind: Literal["packed", "paged"] = "paged" if issubclass(type(mutant()), ReferencePaged) else "packed"
    predicted = rows(computed(mutant(), *of_batch(kind, call)), case.B, case.T)
    got = check.answer[0].astype(np.float64)
    return got.shape == predicted.shape and error_of(predicted, got) < CLOSE[dtype]


def _predicts(mutant: Callable[[], Any], case: SequenceCase, check: Check) -> bool:
    dtype = check.column.rpartition(", ")[2]
    found = sequences(case, dtype)
    predicted, right = compared(case, found, computed(mutant(), case, found)), _oracle(case, dtype)
    wanted = right if check.answer is None else compared(case, found, check.answer[0])
    if check.verdict == "fail" and check.answer is None:  # it raised, which no fault here does
        return True
    return wanted.shape == predicted.shape and error_of(predicted, wanted.astype(np.float64)) < CLOSE[dtype]


def _oracle(case: SequenceCase, dtype: str) -> Array:
    found = sequences(case, dtype)
    return compared(case, found, expected(found, "float64"))

"""One comparison of one array of one case, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conformance.cases.compare import Difference
from conformance.cases.table import Case
from conformance.targets.frameworks import Framework

QUANTITIES = ("output", "weights")
GRADIENTS = "gradients"


def quantities(case: Case, framework: Framework) -> tuple[str, ...]:
    """What is compared of a target's answer. Gradients need a framework that has them; one grouping has them all."""
    with_gradients = framework.vjp is not None and case.differentiated
    return (*QUANTITIES, GRADIENTS) if with_gradients else QUANTITIES


@dataclass(frozen=True)
class Check:
    """One comparison. column: who against whom, in which dtype. error: in units of the dtype's epsilon.
    explanation: the dialect that reproduces what failed. answer: the target's arrays, until they are explained.
    seconds: of the target's second call, arrays in and out included; None where there was none.
    """

    row: str
    case: str
    column: str
    quantity: str
    error: float
    verdict: str  # "pass", "fail" or "unsupported"
    reason: str = ""
    explanation: str = ""
    answer: Any = field(default=None, repr=False, compare=False)
    seconds: float | None = field(default=None, compare=False)


def verdict(case: Case, column: str, quantity: str, found: Difference) -> Check:
    return Check(
        case.grouping, case.name, column, quantity, found.error, "fail" if found.reason else "pass", found.reason
    )


def unsupported(case: Case, column: str, quantity: str, reason: str) -> Check:
    return Check(case.grouping, case.name, column, quantity, 0.0, "unsupported", reason)

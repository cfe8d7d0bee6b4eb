"""What a target gave on a failing case, beside the oracle's answer: matrices for pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from conformance.cases.table import kernel_cases, layer_cases
from conformance.checks.check import Check
from conformance.checks.judge import Options
from conformance.report.picture import Place, place
from conformance.targets import NotATarget, Unsupported, fit
from conformance.targets.worker import Stopped, Worker
from conformance.trace.compare import Fault, target_side
from conformance.trace.stages import backend_stages

MOST = 40  # pictures of one target


@dataclass(frozen=True)
class Evidence:
    """A failing case in one dtype. shown: A is the oracle, B the target."""

    case: str
    column: str
    shown: Place


def evidence(path: str, options: Options, checks: list[Check]) -> list[Evidence]:
    """The weights, or of a layer that returns none the output, of up to MOST failing cases, each feature once first."""
    failing = _spread((c.case, c.column) for c in checks if c.verdict == "fail" and _answered(c))[:MOST]
    if not failing:
        return []
    found: list[Evidence] = []
    with Worker(path, options.arrays, options.limit, options.changes) as worker:
        side = target_side(worker)
        for case in kernel_cases() if side.kernel else layer_cases():
            try:
                case = fit(case, side.limits, layer=not side.kernel)
                for name, column in [pair for pair in failing if pair[0] == case.name]:
                    failing.remove((name, column))
                    dtype = column.rpartition(", ")[2]
                    got = side.stages(case, dtype, side.kernel)
                    shown = place(backend_stages("numpy", case, dtype, "float64", side.kernel), got)
                    found += [Evidence(name, column, shown)] if shown is not None else []
            except (Unsupported, Fault, Stopped, NotATarget):
                continue
    return found


def _answered(check: Check) -> bool:
    """Whether there are arrays to show."""
    return not check.reason.startswith(("raised", "returned", "did not answer", "ended"))


def _spread(cases: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first of each feature, then the second of each, and so on."""
    rank: dict[str, int] = defaultdict(int)
    ranked = []
    for number, (case, column) in enumerate(dict.fromkeys(cases)):
        feature = case.partition(" / ")[2]
        ranked.append((rank[feature], number, (case, column)))
        rank[feature] += 1
    return [pair for _, _, pair in sorted(ranked)]

"""The suite from Python: `conformance.judge(callable)` and `conformance.assert_conforms(callable)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conformance.cases.caches import CacheCase
from conformance.cases.sequences import ROW as SEQUENCE_ROWS
from conformance.cases.sequences import SequenceCase
from conformance.cases.states import ROW as STATE_ROW
from conformance.cases.states import StateCase
from conformance.cases.table import FEATURE
from conformance.checks import judge as judging
from conformance.checks.caches import cache_checks
from conformance.checks.check import Check
from conformance.checks.sequences import sequence_checks
from conformance.checks.states import state_checks
from conformance.checks.targets import target_checks
from conformance.targets import Limits, Target, TargetClass
from conformance.targets.frameworks import quick_to_compile, set_x64
from conformance.targets.limits import limits_of, with_changes
from conformance.targets.public import framework_of, target_of
from conformance.targets.recognise import recognise
from conformance.targets.sequences import SequenceFunction


@dataclass(frozen=True)
class Judgement:
    """What the suite found.

    Attributes:
        checks: one for each case, dtype and quantity, with a verdict "pass", "fail" or "unsupported".
        notes: what the callable always does, as "applies RoPE itself: half, theta 10000".
    """

    checks: list[Check]
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.verdict == "fail"]

    @property
    def causes(self) -> dict[str, int]:
        """What reproduces the failures, by name, and how many each has a part in; most first."""
        counted = Counter(check.explanation or check.reason for check in self.failures)
        return dict(counted.most_common())

    @property
    def passed(self) -> bool:
        """Whether something passed and nothing failed: what is unsupported is not counted as passed."""
        return not self.failures and any(check.verdict == "pass" for check in self.checks)

    def __str__(self) -> str:
        counted = Counter(check.verdict for check in self.checks)
        lines = [f"{counted['pass']} passed, {counted['fail']} failed, {counted['unsupported']} not supported"]
        lines += [f"  {count:>4}  {cause}" for cause, count in self.causes.items()]
        lines += [f"  first: {check.case}, {check.column}: {check.reason}" for check in self.failures[:1]]
        return "\n".join(lines)


def judge(
    attention: Callable[..., Any],
    *,
    features: Iterable[str] | None = None,
    arrays: str | None = None,
    dtypes: tuple[str, ...] | None = None,
    profile: str = "quick",
    limits: Mapping[str, Any] | Limits | None = None,
) -> Judgement:
    """Judges a function or class in this process.

    Args:
        attention: A function `attention(query, key, value, mask, causal=..., ...)` or a class that is built with
            `embed_dim, num_heads, num_kv_heads`. Parameters may have their common other names.
        features: Names of features, as "causal" or "sinks"; None for every one.
        arrays: Whose arrays a function takes: "numpy", "torch" or "jax".
        dtypes: Those to judge in; None for float64 and float32, or what it takes of them.
        profile: "quick", "kernels" or "full".
        limits: What it takes, as `Limits` or its fields; its attribute `gqa_limits` holds where this is None.

    Returns:
        Every check, and what reproduces those that failed.

    Raises:
        NotATarget: Where it can neither be built nor called.
        ValueError: For a feature that there is none of.
    """
    name = getattr(attention, "__name__", type(attention).__name__)
    declared = limits_of(attention, name)
    declared = limits if isinstance(limits, Limits) else with_changes(declared, limits or {}, "limits")
    quick_to_compile()
    found = target_of(name, attention, arrays or declared.arrays or framework_of(attention), declared)
    target = recognise(found)
    kind = target.kind
    options = judging.Options(arrays, {}, dtypes, profile)
    items = _chosen(judging.items_of(name, options, kind, target.limits), features)
    checks = [check for case, dtype in items for check in _checks(target, case, dtype)]
    return Judgement(judging.explained(name, checks, items, _Known(kind, target.limits)), target.notes)


def assert_conforms(attention: Callable[..., Any], features: Iterable[str] | None = None, **options: Any) -> None:
    """For a test of your own: fails with the causes by name.

    Args:
        attention: As of `judge`.
        features: As of `judge`.
        options: The other arguments of `judge`.

    Raises:
        AssertionError: Where a case fails, or none is supported.
        NotATarget: Where it can neither be built nor called.
        ValueError: For a feature that there is none of.
    """
    found = judge(attention, features=features, **options)
    if not found.passed:
        raise AssertionError(str(found))


@dataclass(frozen=True)
class _Known:
    """What an explanation must know of a target in this process."""

    kind: str
    limits: Limits


def _chosen(
    items: list[tuple[judging.SuiteCase, str]], features: Iterable[str] | None
) -> list[tuple[judging.SuiteCase, str]]:
    if features is None:
        return items
    wanted = set(features)
    known = (*FEATURE, "caches", STATE_ROW, *SEQUENCE_ROWS.values())
    unknown = sorted(wanted - {*known})
    if unknown:
        raise ValueError(f"features: no feature is called {unknown[0]!r}; there are {', '.join(known)}")
    return [(case, dtype) for case, dtype in items if _feature(case) in wanted]


def _feature(case: judging.SuiteCase) -> str:
    if isinstance(case, SequenceCase):
        return SEQUENCE_ROWS[case.kind]
    if isinstance(case, StateCase):
        return STATE_ROW
    return "caches" if isinstance(case, CacheCase) else case.feature.name


def _checks(target: Target, case: judging.SuiteCase, dtype: str) -> Iterable[Check]:
    set_x64(dtype != "float32")
    if isinstance(case, CacheCase):
        assert isinstance(target, TargetClass)
        found = cache_checks(case, dtype, target)
    elif isinstance(case, SequenceCase):
        assert isinstance(target, SequenceFunction)
        found = sequence_checks(case, dtype, target)
    elif isinstance(case, StateCase):
        found = state_checks(case, dtype, target)
    else:
        found = target_checks(case, dtype, target)
    return [check for check in found if check is not None]

"""The proof: what is compared, of whom, against what, and how a difference is named.

Packages, each of which sees only those before it:

    cases       the table of cases, their numbers, and how two arrays are compared
    targets     what is judged: our backends, public implementations, a user's function or class
    dialects    the conventions in which implementations differ, by name
    reference   attention one number at a time, which checks the oracle
    mutants     planted bugs, which check the suite
    checks      one comparison each; all cases of one target; the whole run
    trace       stage by stage: where two attentions first differ
    report      tables, JSON, JUnit XML, HTML

Public: `judge`, `assert_conforms`, `Judgement`, `Limits`, `NotATarget`, `Unsupported`.
`pytest_plugin` and `tests_for_targets` run the cases as tests: `pytest --pyargs conformance --gqa-target MODULE:NAME`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.checks.api import Judgement, assert_conforms, judge
    from conformance.targets import Limits, NotATarget, Unsupported

__all__ = ["Judgement", "Limits", "NotATarget", "Unsupported", "assert_conforms", "judge"]


def __getattr__(name: str) -> Any:
    """On first use: pytest imports this package in every run of an environment."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'conformance' has no attribute {name!r}")
    owner = "targets" if name in ("Limits", "NotATarget", "Unsupported") else "checks.api"
    return getattr(import_module(f"conformance.{owner}"), name)

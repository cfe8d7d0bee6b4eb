"""One test for each case, dtype and quantity of the target that `--gqa-target` names."""

from __future__ import annotations

import pytest

from conformance.checks.check import Check
from conformance.report.reproduce import command


def test_target(gqa_check: Check, request: pytest.FixtureRequest) -> None:
    """Unsupported is a skip, never a pass."""
    if gqa_check.verdict == "unsupported":
        pytest.skip(f"unsupported: {gqa_check.reason}")
    if gqa_check.verdict == "fail":
        named = [f"reproduced by: {gqa_check.explanation}"] if gqa_check.explanation else []
        again = command(gqa_check, request.config.getoption("gqa_arrays"))
        pytest.fail("\n".join([gqa_check.reason, *named, again]), pytrace=False)

"""The command that does one check again and shows its stages."""

from __future__ import annotations

import shlex

from conformance.cases import FEATURE
from conformance.proof import Check
from conformance.targets import WINGS

WHOLE = "gqa conform"
KERNELS = frozenset(f"{wing} kernel" for wing in WINGS)


def command(check: Check, arrays: str | None = None) -> str:
    """arrays: as it was given to `gqa conform`. Real weights and textbook cases are only run whole."""
    name, _, dtype = check.column.rpartition(", ")
    if feature_of(check) is None:
        return WHOLE
    if " to " in name:
        return _trace(*name.split(" to "), check.case, dtype)
    if name in KERNELS:
        return _trace("numpy", name.removesuffix(" kernel"), check.case, dtype, "--kernel")
    return _trace("numpy", name, check.case, dtype, *(("--arrays", arrays) if arrays else ()))


def feature_of(check: Check) -> str | None:
    """What the case switches on; None for a case that is not of the table."""
    feature = check.case.partition(" / ")[2]
    return feature if feature in FEATURE else None


def _trace(a: str, b: str, case: str, dtype: str, *options: str) -> str:
    return shlex.join(["gqa", "trace", a, b, "--case", case, "--dtype", dtype, *options])

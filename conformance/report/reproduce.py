"""The command that does one check again and shows its stages."""

from __future__ import annotations

import shlex

from conformance.cases.table import FEATURE
from conformance.checks.caches import ROW as CACHES
from conformance.checks.check import Check
from conformance.targets import BACKENDS

WHOLE = "gqa conform"
KERNELS = frozenset(f"{backend} kernel" for backend in BACKENDS)


def command(check: Check, arrays: str | None = None) -> str:
    """arrays: as it was given to `gqa conform`. Caches are only run with all other cases of a target,
    real weights and nn.MultiheadAttention's cases with everything."""
    name, _, dtype = check.column.rpartition(", ")
    options = ("--arrays", arrays) if arrays else ()
    if check.row == CACHES:
        return shlex.join(["gqa", "conform", "--target", name, *options])
    if feature_of(check) is None:
        ours = " to " in name or name in KERNELS or name in BACKENDS
        return WHOLE if ours else shlex.join(["gqa", "conform", "--target", name, "--case", check.case, *options])
    if " to " in name:
        return _trace(*name.split(" to "), check.case, dtype)
    if name in KERNELS:
        return _trace("numpy", name.removesuffix(" kernel"), check.case, dtype, "--kernel")
    return _trace("numpy", name, check.case, dtype, *options)


def feature_of(check: Check) -> str | None:
    """What the case switches on; None for a case that is not of the table."""
    feature = check.case.partition(" / ")[2]
    return feature if feature in FEATURE else None


def _trace(a: str, b: str, case: str, dtype: str, *options: str) -> str:
    return shlex.join(["gqa", "trace", a, b, "--case", case, "--dtype", dtype, *options])

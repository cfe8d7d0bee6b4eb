"""A target's cache against one whole pass of the float64 oracle, and what it does when it is full.

The class has `init_cache(batch_size, max_length)` and `extend(x, cache)` -> output, cache; `rolling` and `lengths` are
given where a case needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from conformance.cases import caches as cache_cases
from conformance.cases.caches import EQUAL, CacheCase
from conformance.cases.compare import Difference, bound, compare, error_of
from conformance.cases.inputs import DTYPES
from conformance.checks.check import Check
from conformance.targets import TargetClass, Unsupported
from conformance.targets.fit import fit_cache

Array = np.ndarray
ROW = "caches"
FULL = CacheCase("more tokens than it holds", EQUAL, overfills=True, settings={"rope": None})
CASES = (*cache_cases.CASES, FULL)


def name_of(case: CacheCase) -> str:
    return f"{ROW} / {case.name}"


def cache_checks(case: CacheCase, dtype: str, target: TargetClass) -> Iterator[Check | None]:
    """One case; yields None when the target has answered, as `target_checks` does."""
    column = f"{target.name}, {dtype}"

    def check(verdict: str, reason: str, error: float = 0.0) -> Check:
        return Check(ROW, name_of(case), column, "output", error, verdict, reason)

    try:
        if not target.limits.takes_dtype(dtype):
            raise Unsupported(f"takes no {dtype}")
        fitted = fit_cache(case, target.limits)
        extends = _caches(fitted, dtype, target)
        got = [] if case.overfills else cache_cases.chunks_in_turn(fitted, extends, dtype)
        fault = _overfilled(fitted, dtype, extends[0]) if case.overfills else ""
    except (Unsupported, NotImplementedError) as reason:
        yield check("unsupported", str(reason))
        return
    except Exception as error:
        yield check("fail", f"raised {type(error).__name__}: {error}", np.inf)
        return
    yield None
    found = Difference(np.inf if fault else 0.0, fault)
    for seed, joined in enumerate(got):
        oracle, plain = (cache_cases.whole(fitted, kind, seed) for kind in ("float64", dtype))
        found = compare(joined, oracle, dtype, bound(dtype, error_of(plain, oracle)))
        if found.reason:
            break
    if not found.reason:
        yield check("pass", "", found.error)
        return
    yield replace(check("fail", found.reason, found.error), answer=(got[0], None) if got else None)


Extend = Callable[[Array, list[int]], Array]


def _caches(case: CacheCase, dtype: str, target: TargetClass) -> list[Extend]:
    """One cache, or two of one layer."""
    layer = target.layer(case.config, dtype)
    layer.load({name: x.astype(DTYPES[dtype]) for name, x in cache_cases.weights(case).items()})

    def cache() -> Extend:
        extend = layer.caching(case.batch, case.max_length, rolling=case.rolling, ends=case.overfills)
        return lambda x, counts: extend(x, np.array(counts) if min(counts) < x.shape[1] else None)

    return [cache() for _ in range(2 if case.in_turn else 1)]


def _overfilled(case: CacheCase, dtype: str, extend: Extend) -> str:
    """SPEC 13: a cache without free slots raises, or where it cannot gives NaN. What is wrong, or nothing."""
    x = cache_cases.tokens(case).astype(DTYPES[dtype])
    for i in range(case.max_length):
        extend(x[:, i % x.shape[1]][:, None], [1] * case.batch)
    try:
        output = extend(x[:, :1], [1] * case.batch)
    except Exception:
        return ""
    return "" if np.isnan(output).all() else f"takes token {case.max_length + 1} of {case.max_length} without an error"

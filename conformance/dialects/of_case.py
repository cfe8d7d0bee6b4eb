"""A case of the suite in any dialect, in float64 on the numbers that a target is given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conformance.cases import caches, inputs
from conformance.cases.caches import CacheCase
from conformance.cases.inputs import DTYPES, Call
from conformance.cases.table import Case
from conformance.dialects.conventions import Dialect
from conformance.dialects.kernel import DialectKernel
from conformance.dialects.layer import DialectLayer

Array = np.ndarray
Answer = tuple[Array, Array | None]
InDialect = Callable[[Dialect], Answer]


def wide(call: Call) -> Call:
    """The call's arrays in float64; its masks as they are."""
    query, key, value = (None if x is None else x.astype(np.float64) for x in call.arguments[:3])
    floating = ("sinks", "dropout_multiplier")
    keywords = {n: x.astype(np.float64) if n in floating else x for n, x in call.keywords.items()}
    return Call(query, key, value, call.mask, keywords)


def in_dialects(case: Case, dtype: str, *, kernel: bool) -> InDialect:
    """What a dialect gives for the case: context or output, and weights."""
    if kernel:
        call = wide(inputs.kernel_call(case, dtype))
        return lambda dialect: DialectKernel(dialect)(*call.arguments, **call.keywords)
    of_layer = wide(inputs.layer_call(case, dtype))
    weights = {name: x.astype(np.float64) for name, x in inputs.weights(case, dtype).items()}

    def answer(dialect: Dialect) -> Answer:
        layer = DialectLayer(case.config, dialect).load_weights(weights)
        return layer(*of_layer.arguments, **of_layer.keywords)

    return answer


def cache_in_dialects(case: CacheCase, dtype: str) -> InDialect | None:
    """What a dialect gives for a cache's chunks; None for a case that a dialect's cache does not take."""
    if case.rolling or case.overfills or case.in_turn or any(len(set(counts)) > 1 for counts in case.splits):
        return None
    weights = {name: x.astype(DTYPES[dtype]).astype(np.float64) for name, x in caches.weights(case).items()}

    def answer(dialect: Dialect) -> Answer:
        layer = DialectLayer(case.config, dialect).load_weights(weights)
        cache = layer.init_cache(case.batch, case.max_length)

        def extend(x: Array, counts: list[int]) -> Array:
            nonlocal cache
            output, cache = layer.extend(x.astype(np.float64), cache)
            return output

        return caches.chunks(case, extend, dtype), None

    return answer

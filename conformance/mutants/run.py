"""Which cases catch which mutant. The baselines, correct code in the same form, must pass every case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases import caches as cache_cases
from conformance.cases import inputs
from conformance.cases import sequences as sequence_cases
from conformance.cases.compare import compare
from conformance.cases.table import KERNEL_ROWS, kernel_cases, layer_cases
from conformance.mutants import MUTANTS
from conformance.reference.cache import ReferenceCache
from conformance.reference.gradients import ReferenceGradients
from conformance.reference.kernel import ReferenceKernel
from conformance.reference.layer import ReferenceLayer
from conformance.reference.rope import ReferenceRope
from conformance.reference.sequences import ReferencePacked, ReferencePaged, computed

Array = np.ndarray
FEW = 20_000  # pairs of a query and a key that five loops of Python go over in 0.05 s
BASELINES: dict[str, type] = {
    "kernel": ReferenceKernel,
    "layer": ReferenceLayer,
    "RoPE": ReferenceRope,
    "weights": ReferenceLayer,
    "cache": ReferenceCache,
    "gradients": ReferenceGradients,
    "packed": ReferencePacked,
    "paged": ReferencePaged,
}


@dataclass(frozen=True)
class MutantResult:
    """One mutant, what it is, how many cases it was run against, and those that caught it."""

    bug: str
    what: str
    shown: int
    caught_by: tuple[str, ...]
    family: str = "kernel"


def mutant_results(families: tuple[str, ...] = tuple(MUTANTS), *, whole: bool = True) -> list[MutantResult]:
    """Every mutant against the cases of its family; float64, the NumPy backend as oracle.

    whole: run every case, also after one has caught the mutant.
    """
    return [run_mutant(family, mutant, whole=whole) for family in families for mutant in MUTANTS[family]]


def baselines() -> list[MutantResult]:
    """The same cases against the unchanged reference: what they catch is a false alarm."""
    return [run_mutant(family, right) for family, right in BASELINES.items()]


def catches(family: str, mutant: type, case: str) -> bool:
    """Whether one named case of a family catches an implementation."""
    references, differs = _FAMILIES[family]
    return differs(mutant, references()[case])


def run_mutant(family: str, mutant: type, *, whole: bool = True) -> MutantResult:
    """One implementation against the cases of a family."""
    references, differs = _FAMILIES[family]
    found = (name for name, reference in references().items() if differs(mutant, reference))
    caught = tuple(found) if whole else tuple(name for name in [next(found, None)] if name)
    return MutantResult(mutant.__name__, (mutant.__doc__ or "").split("\n")[0], len(references()), caught, family)


Reference = tuple[Any, inputs.Call, Any]


@cache
def kernel_references() -> dict[str, Reference]:
    attention = gqa_numpy.grouped_query_attention
    found: dict[str, Reference] = {}
    for case in kernel_cases():
        if case.pairs > FEW:
            continue
        call = inputs.kernel_call(case, "float64")
        found[case.name] = (case, call, attention(*call.arguments, **call.keywords))
    return found


@cache
def layer_references() -> dict[str, Reference]:
    """The cases that need a layer to show: RoPE, norms, biases, and plain layers."""
    found: dict[str, Reference] = {}
    for case in layer_cases():
        if (case.feature.layer or case.feature.square) and case.grouping in KERNEL_ROWS:
            layer = gqa_numpy.GroupedQueryAttention.from_config(case.config).eval()
            layer.load_weights(inputs.weights(case, "float64"))
            call = inputs.layer_call(case, "float64")
            found[case.name] = (case, call, layer(*call.arguments, **call.keywords))
    return found


@cache
def gradient_references() -> dict[str, tuple[inputs.Call, Array, dict[str, Array]]]:
    """As the kernel's, without poison, which the reference would differentiate, and without gradients of roundings: of
    masks in 16 bit, of sinks that weigh nothing.
    """
    found: dict[str, Any] = {}
    for case in kernel_cases():
        rounded = case.feature.mask == "float16 per row" or case.feature.name == "sinks far below the scores"
        if not case.feature.poison and not rounded and case.pairs <= FEW:
            call = inputs.kernel_call(case, "float64")
            context, vjp = gqa_numpy.grouped_query_attention_vjp(*call.arguments, **call.keywords)
            d_context = np.random.default_rng(len(found)).normal(size=context.shape)
            found[case.name] = (call, d_context, vjp(d_context))
    return found


@cache
def sequence_references(kind: str) -> dict[str, Any]:
    """Cases of packed or paged functions, their numbers and what the oracle gives for them."""
    found: dict[str, Any] = {}
    for case in sequence_cases.CASES[kind]:
        drawn = sequence_cases.sequences(case, "float64")
        found[case.name] = case, drawn, sequence_cases.compared(case, drawn, sequence_cases.expected(drawn, "float64"))
    return found


@cache
def short_caches() -> dict[str, cache_cases.CacheCase]:
    return {case.name: case for case in cache_cases.CASES if case.length < 40}


def _kernel_differs(mutant: type, reference: Reference) -> bool:
    _, call, expected = reference
    return _differ(mutant()(*call.arguments, **call.keywords), expected)


def _layer_differs(mutant: Any, reference: Reference) -> bool:
    case, call, expected = reference
    layer = mutant(case.config).load_weights(inputs.weights(case, "float64"))
    return _differ(layer(*call.arguments, **call.keywords), expected)


def _rope_differs(mutant: type, reference: Reference) -> bool:
    return _layer_differs(type(mutant.__name__, (ReferenceLayer,), {"rope": mutant()}), reference)


def _cache_differs(mutant: Any, case: cache_cases.CacheCase) -> bool:
    layer = ReferenceLayer(case.config).load_weights(cache_cases.weights(case))
    return cache_cases.error(case, mutant(layer, case.batch, case.max_length, case.rolling).extend) > 1e-12


def _gradients_differ(mutant: type, reference: tuple[inputs.Call, Array, dict[str, Array]]) -> bool:
    call, d_context, expected = reference
    found = mutant()(d_context, *call.arguments, **call.keywords)
    return found.keys() != expected.keys() or any(
        compare(found[name], expected[name], "float64", 1e-11, exact_zeros=False).reason for name in expected
    )


def _sequences_differ(mutant: Any, reference: Any) -> bool:
    case, drawn, expected = reference
    got = sequence_cases.compared(case, drawn, computed(mutant(), case, drawn))
    return bool(compare(got, expected, "float64", 1e-12).reason)


def _differ(got: Any, expected: Any) -> bool:
    return any(compare(g, e, "float64", 1e-12).reason for g, e in zip(got, expected, strict=True))


_FAMILIES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[Any, Any], bool]]] = {
    "kernel": (kernel_references, _kernel_differs),
    "layer": (layer_references, _layer_differs),
    "RoPE": (layer_references, _rope_differs),
    "weights": (layer_references, _layer_differs),
    "cache": (short_caches, _cache_differs),
    "gradients": (gradient_references, _gradients_differ),
    "packed": (partial(sequence_references, "packed"), _sequences_differ),
    "paged": (partial(sequence_references, "paged"), _sequences_differ),
}

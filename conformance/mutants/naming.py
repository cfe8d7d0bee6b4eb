"""Which mutants `gqa dialect` names: those that are a habit of some library, and that a forward call shows, or a cache
that is given equal rows. No gradient is probed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import gqa_numpy
from conformance.dialects.conventions import Dialect, named
from conformance.dialects.detect import dialect_of, findings
from conformance.mutants import MUTANTS
from conformance.reference.layer import ReferenceLayer
from conformance.targets import TargetClass, TargetFunction
from conformance.targets.frameworks import framework
from gqa_spec import AttentionConfig

Array = np.ndarray
FAMILIES = ("kernel", "layer", "RoPE", "weights")
FAULTS = {"SoftmaxWithoutSum": "unfinished"}  # no library has it as a convention: it is no softmax at all
_LEFT = "in interleaved order where RoPE rotates halves"
_ONCE = "attention factor on the scores once"
EXPECTED: dict[str, dict[str, str]] = {
    "TiledHeads": {"head order": "tiled: n % K"},
    "DividedByK": {"head order": "divided by K: n // K"},
    "ValueGroupedDifferently": {"head order": "keys contiguous, values tiled"},
    "GroupsFromTheEnd": {"head order": "from the last: K - 1 - n // G"},
    "FirstKVHeadForAll": {"head order": "KV head 0 for all"},
    "TopLeftCausal": {"alignment": "top-left", "offset": "ignored"},
    "CausalWithoutItself": {"causal": "j < i, not its own key"},
    "CausalOneAhead": {"causal": "j <= i + 1, one key ahead"},
    "WindowOneMore": {
        "causal window of W": "counts neighbours: W + 1 keys",
        "window without causal": "counts neighbours: 2 W + 1 keys",
    },
    "WindowOneLess": {"causal window of W": "W - 1 keys", "window without causal": "2 W - 3 keys"},
    "WindowLeaksFuture": {"causal window of W": "a band, causal forgotten"},
    "WindowIgnored": {"causal window of W": "ignored", "window without causal": "ignored"},
    "BandLooksBackOnly": {"window without causal": "W keys, the past only"},
    "ChunkRoundsToZero": {"chunk": "truncated"},
    "ChunkAsWindow": {"chunk": "slides with the query"},
    "OffsetIgnored": {"offset": "ignored"},
    "FirstRowsOffsetForAll": {"offset of each row": "the first row's for all"},
    "NegativeOffsetIsZero": {"offset": "no position before 0"},
    "ScaleForgotten": {"scale": "1"},
    "ScaleIgnored": {"given scale": "ignored"},
    "ScaleFromValue": {"scale": "Hv ** -0.5"},
    "ScaleTwice": {"scale": "1 / H", "given scale": "squared"},
    "ScaleBesidesDefault": {"given scale": "on top of H ** -0.5"},
    "SoftmaxBaseTwo": {"softmax": "2 ** x"},
    "SoftcapAfterMask": {"softcap order": "mask before cap"},
    "SoftcapBeforeScale": {"softcap order": "cap before scale"},
    "SoftcapIgnored": {"softcap order": "ignored"},
    "SoftcapClips": {"softcap order": "clipped, no tanh"},
    "SoftcapWithoutInverse": {"softcap order": "tanh of the score itself"},
    "InvertedMask": {"boolean mask": "True is hidden"},
    "FloatMaskAsBoolean": {"floating mask": "read as boolean"},
    "MinimumIsMasked": {"floating mask": "finfo.min is hidden"},
    "MinimumOverflows": {"floating mask": "finfo.min overflows"},
    "BiasScaled": {"floating mask": "scaled with the scores"},
    "BiasSubtracted": {"floating mask": "subtracted"},
    "CausalDropsMask": {"mask with causal": "causal alone"},
    "MaskDropsCausal": {"mask with causal": "mask alone"},
    "FirstRowsMaskForAll": {"mask of each row and head": "the first row's for all"},
    "FirstHeadsMaskForAll": {"mask of each row and head": "the first head's for all"},
    "EmptyRowIsMean": {"empty row, boolean": "mean of all values", "empty row, -inf": "mean of all values"},
    "EmptyRowIsNaN": {"empty row, boolean": "NaN", "empty row, -inf": "NaN"},
    "SinkFillsEmptyRows": {"empty row, boolean": "the first value", "empty row, -inf": "the first value"},
    "PoisonLeaks": {"poison": "values leak"},
    "SinkInNumerator": {"sinks": "given to the first key"},
    "SinkIgnored": {"sinks": "ignored"},
    "SinkPerKVHead": {"sinks": "per KV head"},
    "SinkScaled": {"sinks": "times H ** -0.5"},
    "SinkCapped": {"sinks": "capped"},
    "SinkOnlyUnmasked": {"sinks": "dropped with a window"},
    "WeightsAfterDropout": {"returned weights": "after dropout"},
    "WeightsAveraged": {"returned weights": "averaged over heads"},
    "DropoutNotRescaled": {"dropout": "kept, not rescaled"},
    "DropoutSharedByHeads": {"dropout": "the first head's for all"},
    "OtherRopePairing": {"RoPE pairing": "half and interleaved swapped"},
    "AlwaysHalfPairs": {"RoPE pairing": "half, whatever is configured"},
    "AlwaysInterleavedPairs": {"RoPE pairing": "interleaved, whatever is configured"},
    "RotatedBackwards": {"RoPE rotates": "keys backwards"},
    "OnlyQueriesRotated": {"RoPE rotates": "queries only"},
    "ValuesRotated": {"RoPE rotates": "values too"},
    "PositionsWithoutOffset": {"RoPE positions": "queries at i"},
    "PositionsFromOne": {"RoPE positions": "queries counted from one"},
    "FirstRowsPositionsForAll": {"given positions": "the first row's for all"},
    "GivenPositionsIgnored": {"given positions": "ignored"},
    "AnglesIn16Bit": {"RoPE angles": "positions in bfloat16"},
    "FrequenciesIn16Bit": {"RoPE angles": "frequencies in float16"},
    "WholeHeadRotated": {"partial rotary": "the whole head"},
    "LastDimensionsRotated": {"partial rotary": "the last R dimensions"},
    "NormAfterRope": {"QK-norm order": "after RoPE"},
    "NormWithoutPlusOne": {"norm weights": "w for 1 + w"},
    "NormPlusOneAlways": {"norm weights": "1 + w for w"},
    "NormOfQueriesOnly": {"QK-norm": "queries only"},
    "NormWithQueryWeights": {"QK-norm": "keys by the queries' weights"},
    "NormSubtractsMean": {"QK-norm": "LayerNorm"},
    "NormOfEachHeadAlone": {"QK-norm": "rms_full head by head"},
    "NormWithoutEpsilon": {"QK-norm": "no epsilon"},
    "KeyAndValueSwapped": {"argument order": "query, value, key"},
    "OutputBiasPerHead": {"biases": "the output's once per head"},
    "HeadsJoinedAcrossTokens": {"projections": "heads joined across tokens"},
    # its dynamic base is 10000 too, so that it never grows
    "ThetaIgnored": {"RoPE frequencies": "10000 for theta", "dynamic NTK": "ignored"},
    "OneFrequencyAhead": {"RoPE frequencies": "d counted from one"},
    "HalfTheExponent": {"RoPE frequencies": "theta ** (-d / R)"},
    "ScalingForgotten": dict.fromkeys(
        ("linear scaling", "dynamic NTK", "llama3 scaling", "YaRN", "longrope"), "ignored"
    ),
    "LinearMultiplied": {"linear scaling": "multiplied by the factor"},
    "DynamicAtOriginalLength": {"dynamic NTK": "ignored"},
    "DynamicByFactor": {"dynamic NTK": "by the factor alone"},
    "Llama3DividesAll": {"llama3 scaling": "all divided"},
    "Llama3WithoutRamp": {"llama3 scaling": "no ramp"},
    "YarnInverted": {"YaRN": "ramp inverted"},
    "YarnAlwaysTruncates": {"YaRN": "truncate=False ignored"},
    "YarnFactorFromFormula": {"YaRN": "attention_factor ignored"},
    "YarnFactorForgotten": {"YaRN": "no attention factor"},
    "FactorOnLogitsOnce": {"YaRN": _ONCE, "longrope": _ONCE},
    "LongropeAlwaysShort": {"longrope": "short factors always"},
    "LongropeAlwaysLong": {"longrope": "long factors always"},
    "KeyRowsPermutedWithN": {"RoPE pairing": "key rows permuted with N"},
    "RowsNotPermuted": {"RoPE pairing": "rows in interleaved order, halves rotated"},
    "BiasNotPermuted": {"biases": _LEFT},
    "NormNotPermuted": {"norm weights": _LEFT},
    "PartialRotaryPermutedWhole": {"partial rotary": "rows permuted over the whole head"},
    "BiasForgotten": {"biases": "left behind"},
    "SinksForgotten": {"sinks": "ignored"},
    "QueryHeadsStrided": {"projections": "query heads strided, (G K)"},
    "OutputColumnsStrided": {"projections": "output columns strided, (G K)"},
    "GroupsReadAsBlocks": {"projections": "groups [q .. q, k, v] read as [Q; K; V]"},
    "ReshapedNotTransposed": {"projections": "reshaped, not transposed"},
    "OutputReshapedNotTransposed": {"projections": "output reshaped, not transposed"},
    "NormPlusOneTwice": {"norm weights": "2 + w for 1 + w"},
    "RoundedTo16Bit": {"stored weights": "rounded to bfloat16"},
}


CACHED: dict[str, dict[str, str]] = {
    "ChunkStartsAtZero": {"cached tokens": "causal from the first key held"},
    "RotatedFromZero": {"cached tokens": "rotated from 0"},
    "NewTokenNotAttended": {"cached tokens": "a token does not see itself"},
}


@dataclass(frozen=True)
class Naming:
    """What `gqa dialect` says of a mutant. right: whether that is what the mutant does, no more and no less."""

    bug: str
    found: str
    right: bool


def conventions() -> list[tuple[str, str]]:
    """The family and name of every mutant that is a convention."""
    return [
        (family, mutant.__name__) for family in FAMILIES for mutant in MUTANTS[family] if mutant.__name__ not in FAULTS
    ]


def naming(family: str, mutant: str) -> Naming:
    """The findings of one mutant, judged as a function or class of any origin."""
    cls = next(cls for cls in MUTANTS[family] if cls.__name__ == mutant)
    found = dialect_of(findings(as_target(family, cls)))
    expected: Dialect = frozenset((EXPECTED | CACHED).get(mutant, {}).items())
    return Naming(mutant, named(found), bool(expected) and found == expected)


def as_target(family: str, mutant: Any) -> TargetFunction | TargetClass:
    """The reference code, which computes in float64, as a function or class that returns the dtype it was given.

    A mutant of a layer has the oracle's kernel, which is quick.
    """
    if family == "kernel":
        return TargetFunction(mutant.__name__, framework("numpy"), _function(mutant()))
    if family == "cache":
        return TargetClass(mutant.__name__, framework("numpy"), _cached(mutant))
    if family == "RoPE":
        mutant = type(mutant.__name__, (ReferenceLayer,), {"rope": mutant()})
    quick = type(mutant.__name__, (mutant,), {"kernel": staticmethod(gqa_numpy.grouped_query_attention)})
    return TargetClass(mutant.__name__, framework("numpy"), _class(quick))


def _function(reference: Any) -> Any:
    def attention(
        query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False,
        window: int | None = None, chunk: int | None = None, offset: Any = None, scale: float | None = None,
        softcap: float | None = None, sinks: Array | None = None, dropout_multiplier: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        wide = (x.astype(np.float64) for x in (query, key, value))
        with np.errstate(all="ignore"):
            answer = reference(
                *wide, _lowest(mask), causal=causal, window=window, chunk=chunk, offset=offset, scale=scale,
                softcap=softcap, sinks=sinks, dropout_multiplier=dropout_multiplier,
            )  # fmt: skip
        return _rounded(answer, query)

    return attention


def _class(layer: Any) -> type:
    class Target:
        def __init__(self, *, dtype: Any = None, rng: Any = None, **settings: Any) -> None:
            self.layer = layer(AttentionConfig(**settings))

        def load_weights(self, weights: dict[str, Array]) -> None:
            self.layer.load_weights(weights)

        def __call__(
            self, query: Array, key: Any = None, value: Any = None, mask: Any = None, *, positions: Any = None,
            key_positions: Any = None, offset: Any = None,
        ) -> tuple[Array, Array]:  # fmt: skip
            wide = (None if x is None else x.astype(np.float64) for x in (query, key, value))
            with np.errstate(all="ignore"):
                answer = self.layer(
                    *wide, _lowest(mask), positions=positions, key_positions=key_positions, offset=offset
                )
            return _rounded(answer, query)

    return Target


def _cached(mutant: Any) -> type:
    """The reference layer with a wrong cache, which has slots for any number of tokens."""

    class Quick(ReferenceLayer):
        kernel = staticmethod(gqa_numpy.grouped_query_attention)

    class Cached(_class(Quick)):  # type: ignore[misc]
        def init_cache(self, batch_size: int) -> Any:
            return mutant(self.layer, batch_size, 64, rolling=False)

        def extend(self, x: Array, cache: Any) -> tuple[Array, Any]:
            output = cache.extend(x.astype(np.float64), [x.shape[1]] * len(x))
            return output.astype(x.dtype), cache

    return Cached


def _lowest(mask: Array | None) -> Array | None:
    """A mask in float64, where the lowest number is another."""
    if mask is None or mask.dtype == bool:
        return mask
    return np.where(mask == np.finfo(mask.dtype).min, np.finfo(np.float64).min, mask.astype(np.float64))


def _rounded(answer: tuple[Array, Array], query: Array) -> tuple[Array, Array]:
    context, weights = answer
    return context.astype(query.dtype), weights.astype(query.dtype)

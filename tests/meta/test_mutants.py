"""Tests of the tests: every mutant is caught by a named case, and correct code passes every case."""

import numpy as np
import pytest

from conformance.mutants import MUTANTS
from conformance.mutants.run import BASELINES, baselines, catches, mutant_results, run_mutant
from conformance.reference.layer import ReferenceLayer
from conformance.report.mutants import mutant_table


def test_every_mutant_is_caught(capsys):
    from rich.console import Console

    results = mutant_results(whole=False)
    with capsys.disabled():
        Console(width=140).print(mutant_table(results))
    assert len(results) >= 60
    assert len({found.bug for found in results}) == len(results)
    assert [found.bug for found in results if not found.caught_by] == []


def test_correct_code_passes_every_case():
    assert {found.family: found.caught_by for found in baselines()} == dict.fromkeys(BASELINES, ())


@pytest.mark.parametrize(
    ("family", "mutant", "case"),
    [
        ("kernel", "TiledHeads", "plain"),
        ("kernel", "DividedByK", "plain"),
        ("kernel", "ValueGroupedDifferently", "plain"),
        ("kernel", "TopLeftCausal", "causal"),
        ("kernel", "FirstRowsOffsetForAll", "causal, offset per row"),
        ("kernel", "FirstHeadsMaskForAll", "mask per head"),
        ("kernel", "CausalDropsMask", "causal and mask"),
        ("kernel", "MaskDropsCausal", "causal and mask"),
        ("kernel", "WindowOneMore", "window of one"),
        ("kernel", "WindowOneLess", "window"),
        ("kernel", "BandLooksBackOnly", "window band"),
        ("kernel", "ChunkRoundsToZero", "chunk, offset per row"),
        ("kernel", "ScaleForgotten", "plain"),
        ("kernel", "ScaleIgnored", "scale"),
        ("kernel", "ScaleFromValue", "plain"),
        ("kernel", "SoftcapAfterMask", "softcap and mask"),
        ("kernel", "SoftcapBeforeScale", "softcap"),
        ("kernel", "InvertedMask", "bool mask"),
        ("kernel", "FloatMaskAsBoolean", "float mask"),
        ("kernel", "MinimumIsMasked", "finfo.min bias"),
        ("kernel", "MinimumOverflows", "finfo.min bias"),
        ("kernel", "EmptyRowIsMean", "empty rows"),
        ("kernel", "EmptyRowIsNaN", "empty rows"),
        ("kernel", "PoisonLeaks", "poison"),
        ("kernel", "SinkInNumerator", "sinks"),
        ("kernel", "SinkIgnored", "sinks"),
        ("kernel", "SinkPerKVHead", "sinks"),
        ("kernel", "SinkCapped", "everything"),
        ("kernel", "WeightsAfterDropout", "dropout"),
        ("layer", "AlwaysInterleavedPairs", "RoPE half"),
        ("layer", "AlwaysHalfPairs", "RoPE interleaved"),
        ("layer", "WholeHeadRotated", "RoPE partial"),
        ("layer", "PositionsWithoutOffset", "RoPE, offset per row"),
        ("layer", "FirstRowsPositionsForAll", "RoPE, offset per row"),
        ("layer", "KeysRotatedByIndex", "RoPE at positions of queries alone"),
        ("layer", "AnglesIn16Bit", "RoPE at given positions"),
        ("layer", "NormAfterRope", "QK-norm rms"),
        ("layer", "NormWithoutPlusOne", "QK-norm rms_plus_one"),
        ("layer", "NormOfEachHeadAlone", "QK-norm rms_full"),
        ("RoPE", "LinearMultiplied", "RoPE linear"),
        ("RoPE", "DynamicAtOriginalLength", "RoPE dynamic"),
        ("RoPE", "YarnFactorForgotten", "RoPE yarn"),
        ("RoPE", "YarnAlwaysTruncates", "RoPE yarn, own factor"),
        ("RoPE", "Llama3DividesAll", "RoPE llama3"),
        ("RoPE", "LongropeAlwaysShort", "RoPE longrope"),
        ("RoPE", "LongropeAlwaysLong", "RoPE longrope, short"),
        ("weights", "KeyRowsPermutedWithN", "RoPE half"),
        ("weights", "PartialRotaryPermutedWhole", "RoPE partial"),
        ("weights", "BiasNotPermuted", "RoPE and biases"),
        ("weights", "BiasForgotten", "biases"),
        ("weights", "GroupsReadAsBlocks", "square"),
        ("gradients", "LastHeadOfGroupOnly", "plain"),
        ("gradients", "CapTakenForIdentity", "softcap"),
        ("gradients", "DropoutForgottenInWeights", "dropout"),
        ("gradients", "ClampTakenForIdentity", "finfo.min bias"),
        ("gradients", "SinkGradientPositive", "sinks"),
    ],
)
def test_the_case_that_is_there_to_catch_it_does(family, mutant, case):
    assert catches(family, _mutant(family, mutant), f"GQA 6 over 2 / {case}")


@pytest.mark.parametrize(
    ("family", "mutant", "case"),
    [
        ("packed", "EarlierSequencesSeen", "unequal lengths, causal"),
        ("packed", "QueryStartsForKeys", "other lengths of queries than of keys"),
        ("packed", "EndsOnBlocksOf16", "ends off blocks of 16"),
        ("packed", "TopLeftInEachSequence", "fewer queries than keys, causal"),
        ("packed", "EmptySequenceIsNaN", "a sequence without keys"),
        ("paged", "BlocksFollowTheFirst", "one query"),
        ("paged", "LengthsIgnored", "one query, not causal"),
        ("paged", "LengthOneMore", "lengths of whole blocks"),
        ("paged", "BlocksOf16", "blocks of 5"),
        ("paged", "SlotsPastLengthMultiplied", "poison behind the lengths"),
    ],
)
def test_a_case_of_sequences_catches_what_it_is_there_for(family, mutant, case):
    assert catches(family, _mutant(family, mutant), case)


class GateIgnored(ReferenceLayer):
    def gated(self, context, query):
        return context


class GateOfSilu(ReferenceLayer):
    def gated(self, context, query):
        return super().gated(context, query) * self.projected("gate_proj", query, self.config.num_heads)


class GateOfTheNextHead(ReferenceLayer):
    def gated(self, context, query):
        return np.roll(super().gated(np.roll(context, 1, axis=1), query), -1, axis=1)


class GateWithoutBias(ReferenceLayer):
    def gated(self, context, query):
        self.weights = self.weights | {"gate_proj.bias": np.zeros_like(self.weights["gate_proj.bias"])}
        return super().gated(context, query)


class ScaleIgnored(ReferenceLayer):
    def scaled(self, q, positions):
        return q


class ScaleNotFloored(ReferenceLayer):
    def scaled(self, q, positions):
        beta, length = self.config.query_scale
        return q * (1 + beta * np.log1p(positions / length))[:, None, :, None]


class NormAlwaysBeforeRope(ReferenceLayer):
    def normed_then_rotated(self, x, name, positions, length):
        return self.rotated(self.normed(x, name), positions, length)


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        (GateIgnored, "output gate"),
        (GateOfSilu, "output gate"),
        (GateOfTheNextHead, "output gate"),
        (GateWithoutBias, "output gate"),
        (ScaleIgnored, "query scale by position"),
        (ScaleNotFloored, "query scale by position"),
        (NormAlwaysBeforeRope, "QK-norm after RoPE"),
    ],
)
def test_a_case_of_gates_scales_and_norms_catches_what_it_is_there_for(wrong, case):
    assert catches("layer", wrong, f"GQA 6 over 2 / {case}")
    assert not catches("layer", ReferenceLayer, f"GQA 6 over 2 / {case}")


@pytest.mark.parametrize(
    ("mutant", "case"),
    [
        ("RotatedFromZero", "token by token"),
        ("FirstRowsLengthForAll", "chunks of unequal rows"),
        ("WrittenBeforeRead", "rolling, a first chunk longer than the window"),
        ("OneSlotShort", "rolling, token by token"),
        ("ChunksCountSlots", "rolling, Llama 4's chunks"),
        ("FrequenciesOfTheChunk", "dynamic NTK"),
    ],
)
def test_the_split_that_is_there_to_catch_it_does(mutant, case):
    assert catches("cache", _mutant("cache", mutant), case)


def test_grouping_bugs_hide_from_mha_and_mqa():
    """Why the table needs K different from 1, from N and from N / K."""
    tiled = run_mutant("kernel", _mutant("kernel", "TiledHeads"))
    assert tiled.caught_by
    assert not any(name.startswith(("MHA", "MQA")) for name in tiled.caught_by)


def _mutant(family, name):
    return next(mutant for mutant in MUTANTS[family] if mutant.__name__ == name)

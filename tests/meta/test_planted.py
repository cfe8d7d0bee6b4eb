"""Tests of the tests: every planted bug is caught by a named case, and correct code is never accused."""

import pytest

from conformance.kill import innocents, kill_table
from conformance.report import kill_matrix


@pytest.fixture(scope="module")
def kills():
    return {kill.bug: kill for kill in kill_table()}


def test_every_planted_bug_is_caught(kills, capsys):
    from rich.console import Console

    with capsys.disabled():
        Console(width=140).print(kill_matrix(list(kills.values())))
    assert len(kills) >= 12
    assert [bug for bug, kill in kills.items() if not kill.caught_by] == []


def test_correct_code_is_never_accused():
    assert {kill.bug: kill.caught_by for kill in innocents()} == {"Textbook": (), "TextbookLayer": ()}


@pytest.mark.parametrize(
    ("bug", "case"),
    [
        ("TiledHeads", "plain"),
        ("DividedByK", "plain"),
        ("ValueGroupedDifferently", "plain"),
        ("TopLeftCausal", "causal"),
        ("WindowOneMore", "window of one"),
        ("WindowOneLess", "window"),
        ("ChunkRoundsToZero", "chunk, offset per row"),
        ("ScaleForgotten", "plain"),
        ("ScaleIgnored", "scale"),
        ("ScaleFromValue", "plain"),
        ("SoftcapAfterMask", "softcap and mask"),
        ("SoftcapBeforeScale", "softcap"),
        ("InvertedMask", "bool mask"),
        ("FloatMaskAsBoolean", "float mask"),
        ("MinimumIsMasked", "finfo.min bias"),
        ("EmptyRowIsMean", "empty rows"),
        ("EmptyRowIsNaN", "empty rows"),
        ("SinkInNumerator", "sinks"),
        ("SinkIgnored", "sinks"),
        ("SinkPerKVHead", "sinks"),
        ("WeightsAfterDropout", "dropout"),
        ("OtherRopePairing", "RoPE half"),
        ("KeyRowsPermutedWithN", "RoPE half"),
        ("PositionsWithoutOffset", "RoPE, offset per row"),
        ("NormAfterRope", "QK-norm rms"),
        ("NormWithoutPlusOne", "QK-norm rms_plus_one"),
        ("BiasForgotten", "biases"),
    ],
)
def test_the_case_that_is_there_to_catch_it_does(kills, bug, case):
    assert f"GQA 6 over 2 / {case}" in kills[bug].caught_by


def test_grouping_bugs_hide_from_mha_and_mqa(kills):
    """Why the table needs K different from 1, from N and from N / K."""
    assert not any(name.startswith(("MHA", "MQA")) for name in kills["TiledHeads"].caught_by)

"""How many planted bugs `gqa dialect` names: all that are conventions are put to it, and it is told of none."""

import pytest

from conformance.dialects.conventions import CONVENTION
from conformance.mutants import BUGS
from conformance.mutants.naming import CACHED, EXPECTED, FAMILIES, FAULTS, conventions, naming

# What the mask does before a cap is named for masks of -inf; this bug forgets boolean masks instead.
UNNAMED = {"SoftcapAfterMask"}


@pytest.mark.parametrize(("family", "bug"), conventions(), ids=lambda name: name)
def test_a_planted_convention_is_named(family, bug):
    assert naming(family, bug).right == (bug not in UNNAMED)


@pytest.mark.parametrize("bug", CACHED)
def test_a_planted_bug_of_caches_is_named(bug):
    found = naming("cache", bug)
    assert found.right, found.heard


def test_at_least_nine_of_ten_are_named():
    assert len(UNNAMED) <= 0.1 * len(conventions())


def test_every_bug_that_a_forward_call_shows_is_a_convention_or_a_fault():
    planted = {bug.__name__ for family in FAMILIES for bug in BUGS[family]}
    assert planted == EXPECTED.keys() | FAULTS.keys() | UNNAMED
    assert not EXPECTED.keys() & FAULTS.keys()
    for choices in EXPECTED.values():
        assert all(choice in CONVENTION[name].choices[1:] for name, choice in choices.items())


def test_correct_code_speaks_no_dialect():
    from conformance.dialects.detect import OTHER, findings
    from conformance.mutants.naming import as_target
    from conformance.mutants.run import BASELINES

    for family in ("kernel", "layer", "RoPE", "cache"):
        found = findings(as_target(family, BASELINES[family]))
        assert not [f for f in found if f.agrees is False or f.answer == OTHER or f.raised]

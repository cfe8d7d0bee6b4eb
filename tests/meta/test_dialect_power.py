"""How many mutants `gqa dialect` names, from calls alone: all that are conventions are tried."""

import pytest

from conformance.dialects.conventions import CONVENTION
from conformance.mutants import MUTANTS
from conformance.mutants.naming import CACHED, EXPECTED, FAMILIES, FAULTS, conventions, naming

# What the mask does before a cap is named for masks of -inf; this mutant forgets boolean masks instead.
# Positions without key_positions in self-attention are probed nowhere.
UNNAMED = {"SoftcapAfterMask", "KeysRotatedByIndex"}


@pytest.mark.parametrize(("family", "mutant"), conventions(), ids=lambda name: name)
def test_a_mutant_that_is_a_convention_is_named(family, mutant):
    assert naming(family, mutant).right == (mutant not in UNNAMED)


@pytest.mark.parametrize("mutant", CACHED)
def test_a_mutant_of_caches_is_named(mutant):
    found = naming("cache", mutant)
    assert found.right, found.found


def test_at_least_nine_of_ten_are_named():
    assert len(UNNAMED) <= 0.1 * len(conventions())


def test_every_mutant_that_a_forward_call_shows_is_a_convention_or_a_fault():
    every = {mutant.__name__ for family in FAMILIES for mutant in MUTANTS[family]}
    assert every == EXPECTED.keys() | FAULTS.keys() | UNNAMED
    assert not EXPECTED.keys() & FAULTS.keys()
    for choices in EXPECTED.values():
        assert all(choice in CONVENTION[name].choices[1:] for name, choice in choices.items())


def test_correct_code_differs_in_no_convention():
    from conformance.dialects.detect import OTHER, findings
    from conformance.mutants.naming import as_target
    from conformance.mutants.run import BASELINES

    for family in ("kernel", "layer", "RoPE", "cache"):
        found = findings(as_target(family, BASELINES[family]))
        assert not [f for f in found if f.agrees is False or f.answer == OTHER or f.raised]

"""Mutants: what really goes wrong in implementations of attention, each as the one method that somebody got wrong.

They are built on conformance.reference alone, one module for each subject. `mutants.run` runs them against the cases:
a mutant that no case catches is a fault of the suite.
"""

from __future__ import annotations

from types import ModuleType

from conformance.mutants import (
    caches,
    gradients,
    heads,
    layer,
    masks,
    positions,
    rope,
    scores,
    sequences,
    softmax,
    weights,
)
from conformance.mutants.heads import TiledHeads
from conformance.reference.sequences import ReferencePaged


def _defined_in(*modules: ModuleType) -> tuple[type, ...]:
    """The mutants of some modules, in their order; `weights.Port` is only what some are derived from."""
    classes = [(m, found) for m in modules for found in vars(m).values() if isinstance(found, type)]
    return tuple(c for m, c in classes if c.__module__ == m.__name__ and c is not weights.Port)


MUTANTS: dict[str, tuple[type, ...]] = {
    "kernel": _defined_in(heads, positions, masks, scores, softmax),
    "layer": _defined_in(layer),
    "RoPE": _defined_in(rope),
    "weights": _defined_in(weights),
    "cache": _defined_in(caches),
    "gradients": _defined_in(gradients),
    "packed": tuple(c for c in _defined_in(sequences) if not issubclass(c, ReferencePaged)),
    "paged": tuple(c for c in _defined_in(sequences) if issubclass(c, ReferencePaged)),
}

__all__ = ["MUTANTS", "TiledHeads"]

"""Planted bugs: what really goes wrong in implementations of attention, each as the one method that somebody got wrong.

They are built on conformance.reference and on nothing else. A suite that lets one pass has a hole (`mutant_results`).
"""

from __future__ import annotations

from conformance.mutants import caches, gradients, kernel, layer, rope, weights
from conformance.mutants.kernel import TiledHeads


def _bugs(room: object) -> tuple[type, ...]:
    """The classes of a room that say what is wrong, in their order: those that stand on another room's are bugs."""
    name = room.__name__  # type: ignore[attr-defined]
    own = [found for found in vars(room).values() if isinstance(found, type) and found.__module__ == name]
    return tuple(bug for bug in own if bug is not weights.Port)


BUGS: dict[str, tuple[type, ...]] = {
    "kernel": _bugs(kernel),
    "layer": _bugs(layer),
    "RoPE": _bugs(rope),
    "weights": _bugs(weights),
    "cache": _bugs(caches),
    "gradients": _bugs(gradients),
}

__all__ = ["BUGS", "TiledHeads"]

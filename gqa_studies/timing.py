"""Two contenders against each other on one clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST, MOST = 5, 1000


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Pairs:
    """Seconds of ours and theirs, run in turn. What slows the machine for a while slows both halves of a pair, so the
    ratio of each pair is formed first and the median taken of these."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def ratio(self, quantile: float = 0.5) -> float:
        """How many times faster ours is."""
        return float(np.quantile(np.divide(self.theirs, self.ours), quantile))


def paired(ours: Callable[[], float], theirs: Callable[[], float], budget: float, rest: float = 0.0) -> Pairs:
    """Runs both in turn until `budget` seconds are spent, each a clock that runs its contender once.

    After each the machine rests for a tenth as long, and `rest` seconds at least: what a call leaves behind, memory to
    give back and worker threads that go on spinning, is otherwise the next one's cost.
    """

    def rested(clock: Callable[[], float]) -> float:
        spent = clock()
        time.sleep(max(spent / 10, rest))
        return spent

    ours(), theirs()  # warm-up
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < FEWEST or (time.perf_counter() - start < budget and len(pairs) < MOST):
        pairs.append((rested(ours), rested(theirs)))
    our_seconds, their_seconds = zip(*pairs, strict=True)
    return Pairs(our_seconds, their_seconds)

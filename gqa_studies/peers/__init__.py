"""For each backend, a module of the same shape: our call and those that its users would make instead.

`Calls(case)` holds the inputs and everything that a contender may prepare beforehand. `Calls.ours` is our call. PEERS
names the others, each with the axis that holds the heads in its result. `to_numpy` widens a result to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Peer(NamedTuple):
    call: Callable[[Any], Any]
    heads_axis: int = 1

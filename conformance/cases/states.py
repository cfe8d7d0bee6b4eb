"""Cases of what lasts between calls, which one call does not show: results, inputs, weights, tables, the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StateKind = Literal[
    "result held", "settings in turn", "lengths in turn", "layers in turn", "transposed", "strided", "inputs changed",
    "weights changed", "process", "without weights",
]  # fmt: skip


@dataclass(frozen=True)
class StateCase:
    """What is done between calls of a function or class. features: those that the calls switch on, in turn."""

    name: str
    clause: int
    guards: str
    kind: StateKind
    features: tuple[str, ...] = ("plain", "causal")
    layer_features: tuple[str, ...] = ("square", "square causal")
    function: bool = True


ROW = "state"
IN_TURN = ("plain", "causal", "causal, offset 0", "window", "bool mask", "window band", "causal and mask", "plain")
LAYER_IN_TURN = ("square causal", "square mask", "square", "square causal")
WITHOUT_WEIGHTS = (
    "plain", "causal", "bool mask", "float mask", "window", "softcap", "sinks", "empty rows", "poison", "everything",
)  # fmt: skip

STATES = (
    StateCase("a result held through a later call", 14, "a buffer that is used again", "result held"),
    StateCase(
        "other settings in turn", 14, "a mask that is kept for a shape", "settings in turn", IN_TURN, LAYER_IN_TURN
    ),
    StateCase("transposed inputs", 14, "arrays taken to be contiguous", "transposed", ("causal", "float mask")),
    StateCase("strided inputs", 14, "every second number of a vector", "strided", ("causal", "float mask")),
    StateCase("inputs changed after the call", 14, "a result that is a view of an input", "inputs changed"),
    StateCase("grad mode and random state", 14, "switches that a call leaves changed", "process"),
    StateCase(
        "without weights", 14, "a path for need_weights=False that forgets a rule", "without weights",
        WITHOUT_WEIGHTS, ("square", "square causal", "square mask", "square RoPE"),
    ),
    StateCase("other lengths in turn", 14, "tables or masks of the first length", "lengths in turn", function=False),
    StateCase(
        "other lengths in turn, RoPE", 10, "angles of the longest length so far", "lengths in turn",
        layer_features=("square RoPE",), function=False,
    ),
    StateCase(
        "other lengths in turn, dynamic NTK", 10, "frequencies that stay at the longest length", "lengths in turn",
        layer_features=("RoPE dynamic",), function=False,
    ),
    StateCase("two layers in turn", 14, "weights or tables of the class", "layers in turn", function=False),
    StateCase("weights changed after loading", 14, "weights that are not copied", "weights changed", function=False),
)  # fmt: skip


def name_of(case: StateCase) -> str:
    return f"{ROW} / {case.name}"

"""The stages of an attention layer by name, in the order in which they are computed (SPEC 1 to 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Array = TypeVar("Array")


def kernel_inputs(stages: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """query, key and value after the last stage that is on."""
    q, k = ([x for stage, x in stages.items() if stage.startswith(f"{letter}_")][-1] for letter in "qk")
    return q, k, stages["v_proj"]

"""Weights as facts: canonical names and shapes, the layouts of other frameworks, checkpoint files."""

from gqa_spec.config import symbolic_shapes, weight_shapes
from gqa_weights.layouts.rules import (
    Layout,
    canonical_tensor,
    conventions,
    foreign_shapes,
    foreign_tensor,
    from_canonical,
    rounded_weights,
    sources,
    to_canonical,
)
from gqa_weights.layouts.tables import LAYOUTS

__all__ = [
    "LAYOUTS",
    "Layout",
    "canonical_tensor",
    "conventions",
    "foreign_shapes",
    "foreign_tensor",
    "from_canonical",
    "rounded_weights",
    "sources",
    "symbolic_shapes",
    "to_canonical",
    "weight_shapes",
]

"""Weights as facts: canonical names and shapes, the layouts of other frameworks, checkpoint files."""

from gqa_spec.weights.layouts import LAYOUTS, Layout, from_canonical, to_canonical
from gqa_spec.weights.names import symbolic_shapes, weight_shapes

__all__ = ["LAYOUTS", "Layout", "from_canonical", "symbolic_shapes", "to_canonical", "weight_shapes"]

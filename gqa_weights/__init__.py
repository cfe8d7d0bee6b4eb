"""Weights: what other implementations and checkpoint files call them, and how each becomes a canonical one.

layouts: one attention layer as other implementations store it. checkpoint: files as mappings of tensors, opened and
saved. families: whole models, one record a family. port: a checkpoint in another layout, with a manifest that states
its conventions. heads: KV heads pooled and repeated. describe: what a checkpoint holds. tokenizer: its text.

Public here: the layouts and their functions. The other modules are imported by name: `gqa_weights.families`, ...
"""

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

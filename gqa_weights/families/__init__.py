"""Whole checkpoints of known families: settings -> ModelConfig, and every tensor -> its canonical name; and back."""

from gqa_weights.families.lazy import CanonicalWeights, ForeignWeights
from gqa_weights.families.names import Group
from gqa_weights.families.registry import (
    FAMILIES,
    MANIFEST,
    AttentionModel,
    Family,
    Model,
    ReadOnlyFamilyError,
    detect,
    foreign_tensors,
    foreign_weights,
    model_settings,
    read_attention,
    read_config,
    read_model,
)

__all__ = [
    "FAMILIES",
    "MANIFEST",
    "AttentionModel",
    "CanonicalWeights",
    "Family",
    "ForeignWeights",
    "Group",
    "Model",
    "ReadOnlyFamilyError",
    "detect",
    "foreign_tensors",
    "foreign_weights",
    "model_settings",
    "read_attention",
    "read_config",
    "read_model",
]

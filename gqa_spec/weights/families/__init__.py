"""Whole checkpoints of known families: settings -> ModelConfig, and every tensor -> its canonical name; and back."""

from gqa_spec.weights.families.families import (
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
from gqa_spec.weights.families.lazy import CanonicalWeights, ForeignWeights
from gqa_spec.weights.families.names import Group

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

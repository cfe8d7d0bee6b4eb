"""Whole checkpoints of known families: settings -> ModelConfig, and every tensor -> its canonical name; and back.

records: one record a family, in `FAMILIES`. record: what every record says. config_json, gguf_fields, params_json: a
kind of settings file each, read and written by a record; layer_rules, rope_json, settings help them. tensors: names of
tensors; converted: both sides as mappings. read, write: what is done with a checkpoint.
"""

from gqa_weights.families.converted import CanonicalWeights, ForeignWeights, TensorMapping, reader_of
from gqa_weights.families.read import (
    MANIFEST,
    AttentionModel,
    Model,
    detect,
    read_attention,
    read_config,
    read_model,
)
from gqa_weights.families.record import Family, ReadOnlyFamilyError
from gqa_weights.families.records import FAMILIES
from gqa_weights.families.tensors import StoredTensor
from gqa_weights.families.write import foreign_tensors, foreign_weights, model_settings

__all__ = [
    "FAMILIES",
    "MANIFEST",
    "AttentionModel",
    "CanonicalWeights",
    "Family",
    "ForeignWeights",
    "Model",
    "ReadOnlyFamilyError",
    "StoredTensor",
    "TensorMapping",
    "detect",
    "foreign_tensors",
    "foreign_weights",
    "model_settings",
    "read_attention",
    "read_config",
    "read_model",
    "reader_of",
]

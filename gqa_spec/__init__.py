"""What all three backends agree on: settings, names, shapes, messages, file formats. No framework, no maths."""

from gqa_spec.config import AttentionConfig
from gqa_spec.experts_config import ExpertsConfig
from gqa_spec.model_config import ModelConfig
from gqa_spec.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

__all__ = [
    "AttentionConfig",
    "DynamicScaling",
    "ExpertsConfig",
    "LinearScaling",
    "Llama3Scaling",
    "LongropeScaling",
    "ModelConfig",
    "RopeConfig",
    "RopeScaling",
    "YarnScaling",
]

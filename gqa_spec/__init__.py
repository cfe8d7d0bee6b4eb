"""What all three wings agree on: settings, names, shapes, messages, file formats. No framework, no maths."""

from gqa_spec.config import (
    AttentionConfig,
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
    "LinearScaling",
    "Llama3Scaling",
    "LongropeScaling",
    "RopeConfig",
    "RopeScaling",
    "YarnScaling",
]

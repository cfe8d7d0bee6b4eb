"""Files of our own: canonical names, or a layout of attention among them, with every setting in the manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gqa_spec.model_config import ModelConfig
from gqa_weights.families.converted import TensorMapping
from gqa_weights.families.expert_tensors import MAPS, ExpertTensors
from gqa_weights.families.record import Family, Values
from gqa_weights.families.tensors import TensorNames
from gqa_weights.layouts.tables import LAYOUTS

NAMES = TensorNames(
    ends={"embed": "embed", "norm": "norm", "head": "head"}, block="blocks.{}.", attention="attention.",
    modules={
        name: name for name in (
            "attention_norm", "attention_post_norm", "feed_forward_norm", "feed_forward.gate", "feed_forward.up",
            "feed_forward.down", "feed_forward_post_norm", "feed_forward.shared_gate",
            *(f"feed_forward.shared.{name}" for name in MAPS),
        )
    },
    layout="canonical",
    experts=(
        ExpertTensors(
            router="feed_forward.router", each={name: f"feed_forward.experts.{{}}.{name}" for name in MAPS}
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ManifestFamily(Family):
    """Attention in a layout of its own; the rest of a model has its canonical names."""

    file: ClassVar[str] = "gqa_manifest.json"

    def read_config(self, values: Values, tensors: TensorMapping) -> ModelConfig:
        return ModelConfig.from_dict(values)

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        return config.to_dict()


def manifest_families(others: tuple[Family, ...]) -> tuple[ManifestFamily, ...]:
    """One for each layout that no other family has. "gemma" is Hugging Face's family, so DeepMind's gets its name."""
    taken = {family.tensors.layout for family in others}
    return tuple(
        ManifestFamily(name="deepmind.gemma" if name == "gemma" else name, tensors=replace(NAMES, layout=name))
        for name in LAYOUTS
        if name not in taken
    )

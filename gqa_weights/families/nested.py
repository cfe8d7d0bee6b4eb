"""Larger models, such as those with vision, whose text part is a family of ours: `text_config` in their config.json.

The text part is read; what else the files hold is left out. Only models that compute text alone as the family does are
listed: PaliGemma, whose prompt sees itself whole, and Mllama, with cross-attention, are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_weights.families.generic_keys import ONLY

# Each larger model_type -> the family of its text, where text_config does not say.
LARGER_MODELS = {
    "aya_vision": "cohere2",
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "smolvlm": "llama",
    "voxtral": "llama",
}


def is_larger(settings: Mapping[str, Any]) -> bool:
    name = settings.get("model_type")
    return isinstance(name, str) and name in LARGER_MODELS


def text_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text part, with its family as `model_type`.

    Files of Qwen2-VL before transformers 5 hold them beside those of the vision. Whether the head is tied may be said
    in either place; where it is not, transformers takes it to be, and files with a head of its own overrule that.
    """
    outer = dict(settings)
    family = LARGER_MODELS[outer.pop("model_type")]
    nested = outer.get("text_config")
    if nested is None:
        return {**{key: value for key, value in outer.items() if not _of_another_part(key)}, "model_type": family}
    if not isinstance(nested, Mapping):
        raise ValueError("config.json: text_config: expected a dictionary")
    said = [part["tie_word_embeddings"] for part in (outer, nested) if "tie_word_embeddings" in part]
    tied = any(said) if all(isinstance(value, bool) for value in said) and said else True
    kept = {key: outer[key] for key in (*ONLY, "quantization_config") if key in outer}  # of the whole model
    return {"model_type": family, **kept, **nested, "tie_word_embeddings": tied}


def _of_another_part(key: str) -> bool:
    return key.startswith(("vision_", "image_", "video_")) or key in ("text_config", "audio_config")

"""Gemma's three generations: RMS norm times 1 + w, an embedding times the root of its width."""

from __future__ import annotations

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.layer_rules import GEMMA2_WINDOWS, GEMMA3_WINDOWS
from gqa_weights.families.records.huggingface.shared import (
    BOTH_NORM_NAMES,
    GEMMA2_DEFAULTS,
    GEMMA_DEFAULTS,
    PRE_NORM_NAMES,
    sizes,
)
from gqa_weights.families.rope_json import RopeDefaults

GEMMA = HuggingFaceFamily(
    name="gemma",
    architecture="Gemma",
    tensors=PRE_NORM_NAMES,
    defaults={**GEMMA_DEFAULTS, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"},
    model={"norm": "rms_plus_one"},
    scaled_embedding=True,
    activations={"gelu": "gelu_tanh"},  # what its first files say, and do not mean
    activation_beside="hidden_activation",
)
GEMMA2 = HuggingFaceFamily(
    name="gemma2",
    architecture="Gemma2",
    tensors=BOTH_NORM_NAMES,
    defaults={**GEMMA2_DEFAULTS, "attn_logit_softcapping": 50.0},
    keys={"hidden_act": "hidden_activation"},
    model={"norm": "rms_plus_one", "norm_placement": "both"},
    windows=GEMMA2_WINDOWS,
    scaled_embedding=True,
    activation_beside="hidden_act",
    repeats={"sliding_window_size": "sliding_window"},
)
GEMMA3 = HuggingFaceFamily(
    name="gemma3_text",
    architecture="Gemma3",
    tensors=BOTH_NORM_NAMES,
    defaults={
        **GEMMA2_DEFAULTS, "max_position_embeddings": 131072, "final_logit_softcapping": None,
        "rope_local_base_freq": None, "sliding_window_pattern": 6,
    },
    sizes=sizes(262208, 2304, 9216, 26, 8),
    keys={"hidden_act": "hidden_activation"},
    attention={"qk_norm": "rms_plus_one"},
    model={"norm": "rms_plus_one", "norm_placement": "both"},
    windows=GEMMA3_WINDOWS,
    rope=RopeDefaults(theta=1_000_000.0, local_theta=10_000.0),
    scaled_embedding=True,
    activation_beside="hidden_act",
    only={"attn_logit_softcapping": (None,)},  # in its settings, but not in its model's code
)  # fmt: skip

GEMMAS = (GEMMA, GEMMA2, GEMMA3)

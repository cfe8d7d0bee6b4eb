"""Dense families with RMS norm."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.layer_rules import (
    ALL_WINDOWS,
    EACH_FOURTH_FULL,
    GEMMA3_WINDOWS,
    QWEN_WINDOWS,
    SMOLLM3_WINDOWS,
    no_layer,
    no_rope_layers,
    where_sliding_window,
    where_window,
)
from gqa_weights.families.records.huggingface.shared import (
    COMMON,
    GATED,
    LLAMA_DEFAULTS,
    MROPE,
    POST_NORMS,
    PRE_NORM_NAMES,
    PRE_NORMS,
    QWEN2_DEFAULTS,
    names,
    sizes,
)
from gqa_weights.families.rope_json import RopeDefaults

LLAMA = HuggingFaceFamily(
    name="llama",
    architecture="Llama",
    tensors=PRE_NORM_NAMES,
    defaults={**LLAMA_DEFAULTS, "mlp_bias": False},
    sizes=sizes(32000, 4096, 11008, 32, 32),
)
MISTRAL = HuggingFaceFamily(
    name="mistral",
    architecture="Mistral",
    tensors=PRE_NORM_NAMES,
    defaults={
        **COMMON, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096,
    },
    sizes=sizes(32000, 4096, 14336, 32, 32),
    windows=where_sliding_window,
    only={"attention_bias": (False, None)},
)  # fmt: skip
QWEN2 = HuggingFaceFamily(
    name="qwen2",
    architecture="Qwen2",
    tensors=PRE_NORM_NAMES,
    defaults=QWEN2_DEFAULTS,
    sizes=sizes(151936, 4096, 22016, 32, 32),
    attention={"qkv_bias": True},
    windows=QWEN_WINDOWS,
)
QWEN2_VL = replace(
    QWEN2,
    name="qwen2_vl_text",
    origin="qwen2",
    defaults={**QWEN2_DEFAULTS, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_window_layers": 80},
    sizes=sizes(152064, 8192, 29568, 80, 64),
    rope=MROPE,
)
QWEN2_5_VL = replace(QWEN2_VL, name="qwen2_5_vl_text")
QWEN3 = HuggingFaceFamily(
    name="qwen3",
    architecture="Qwen3",
    tensors=PRE_NORM_NAMES,
    defaults={**QWEN2_DEFAULTS, "head_dim": 128, "attention_bias": False},
    attention={"qk_norm": "rms"},
    windows=QWEN_WINDOWS,
)
QWEN3_VL = replace(
    QWEN3,
    name="qwen3_vl_text",
    origin="qwen3",
    defaults={**LLAMA_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 128000},
    sizes=sizes(151936, 4096, 22016, 32, 32),
    windows=no_layer,
    rope=replace(MROPE, theta=500_000.0),
)
PHI3 = HuggingFaceFamily(
    name="phi3",
    architecture="Phi3",
    tensors=names(
        {**PRE_NORMS, "feed_forward.down": "mlp.down_proj"},
        layout="huggingface.phi3",
        fused={"mlp.gate_up_proj": ("feed_forward.gate", "feed_forward.up")},
    ),
    defaults={
        **COMMON, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "sliding_window": None, "partial_rotary_factor": 1.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    windows=where_sliding_window,
    rope=RopeDefaults(earlier_types={"su": "longrope", "yarn": "longrope"}),
    dropouts=("embd_pdrop", "resid_pdrop"),
    ignored=frozenset({"full_attn_mod", "interpolate_factor"}),  # Phi-4-mini's
    only={"attention_bias": (False, None)},
)  # fmt: skip
OLMO2 = HuggingFaceFamily(
    name="olmo2",
    architecture="Olmo2",
    tensors=names({**POST_NORMS, **GATED}),
    defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    attention={"qk_norm": "rms_full"},
    model={"norm_placement": "post"},
)
SMOLLM3 = HuggingFaceFamily(
    name="smollm3",
    architecture="SmolLM3",
    tensors=PRE_NORM_NAMES,
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "mlp_bias": False, "sliding_window": None, "use_sliding_window": False, "layer_types": None,
        "no_rope_layers": None, "no_rope_layer_interval": 4,
    },
    windows=SMOLLM3_WINDOWS,
    rotates=no_rope_layers,
    rope=RopeDefaults(theta=2_000_000.0),
    ignored=frozenset({"max_window_layers"}),
)  # fmt: skip
MINISTRAL = HuggingFaceFamily(
    name="ministral",
    architecture="Ministral",
    tensors=PRE_NORM_NAMES,
    defaults={**MISTRAL.defaults, "layer_types": None},
    windows=ALL_WINDOWS,
)
OLMO3 = HuggingFaceFamily(
    name="olmo3",
    architecture="Olmo3",
    tensors=OLMO2.tensors,
    defaults={**OLMO2.defaults, "sliding_window": 4096, "layer_types": None},
    attention=OLMO2.attention,
    model=OLMO2.model,
    windows=EACH_FOURTH_FULL,
    rope=RopeDefaults(theta=500_000.0, local_theta=500_000.0, local_key="rope_theta"),
)
EXAONE4 = HuggingFaceFamily(
    name="exaone4",
    architecture="Exaone4",
    tensors=OLMO2.tensors,
    defaults={
        **COMMON, "num_key_value_heads": 32, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": 4096, "sliding_window_pattern": 4,
        "layer_types": None,
    },
    attention={"qk_norm": "rms"},
    model={"norm_placement": "post"},
    windows=GEMMA3_WINDOWS,
    rotates=partial(where_window, windows=GEMMA3_WINDOWS),
)  # fmt: skip
SEED_OSS = HuggingFaceFamily(
    name="seed_oss",
    architecture="SeedOss",
    tensors=PRE_NORM_NAMES,
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524288,
        "attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "attention_dropout": 0.1,
    },
    ignored=frozenset({"residual_dropout"}),
)  # fmt: skip
MINISTRAL3 = HuggingFaceFamily(
    name="ministral3",
    architecture="Ministral3",
    tensors=PRE_NORM_NAMES,
    defaults={
        **MISTRAL.defaults, "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5,
        "sliding_window": None, "rope_parameters": {
            "rope_type": "yarn", "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    windows=where_sliding_window,
    scales_queries=True,
    rope=RopeDefaults(theta=1_000_000.0, unread=("llama_4_scaling_beta", "max_position_embeddings")),
)  # fmt: skip
HUNYUAN_DENSE = HuggingFaceFamily(
    name="hunyuan_v1_dense",
    architecture="HunYuanDenseV1",
    tensors=names({**PRE_NORMS, **GATED}, layout="huggingface.hunyuan"),
    defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    attention={"qk_norm": "rms", "qk_norm_after_rope": True},
    rope=RopeDefaults(alpha=True),
    only={
        "use_qk_norm": (True,), "use_cla": (False,), "norm_type": ("rms",), "mlp_bias": (False,),
        "use_rotary_pos_emb": (True,),
    },
    ignored=frozenset({"attention_head_dim", "cla_share_factor", "eod_token_id", "sep_token_id", "org_vocab_size"}),
)  # fmt: skip
ARCEE = HuggingFaceFamily(
    name="arcee",
    architecture="Arcee",
    tensors=names({**PRE_NORMS, "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"}),
    defaults={
        **LLAMA_DEFAULTS, "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "mlp_bias": False,
    },
    model={"gated": False},
)  # fmt: skip
GRANITE = HuggingFaceFamily(
    name="granite",
    architecture="Granite",
    tensors=PRE_NORM_NAMES,
    defaults={
        **LLAMA_DEFAULTS, "mlp_bias": False, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
        "attention_multiplier": 1.0, "logits_scaling": 1.0,
    },
)  # fmt: skip

# --- rows of q and k in interleaved pairs ----------------------------------------------------------------------------

GLM = HuggingFaceFamily(
    name="glm",
    architecture="Glm",
    tensors=names(
        {**PRE_NORMS, "feed_forward.down": "mlp.down_proj"},
        layout="huggingface.interleaved",
        fused={"mlp.gate_up_proj": ("feed_forward.gate", "feed_forward.up")},
    ),
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7, "attention_bias": True, "partial_rotary_factor": 0.5,
    },
    attention={"out_bias": False},
)  # fmt: skip
GLM4 = HuggingFaceFamily(
    name="glm4",
    architecture="Glm4",
    tensors=names(
        {
            "attention_norm": "input_layernorm", "attention_post_norm": "post_self_attn_layernorm",
            "feed_forward_norm": "post_attention_layernorm", "feed_forward_post_norm": "post_mlp_layernorm",
            "feed_forward.down": "mlp.down_proj",
        },
        layout="huggingface.interleaved",
        fused=GLM.tensors.fused,
    ),
    defaults=GLM.defaults,
    attention=GLM.attention,
    model={"norm_placement": "both"},
)  # fmt: skip
ERNIE4_5 = HuggingFaceFamily(
    name="ernie4_5",
    architecture="Ernie4_5",
    tensors=names({**PRE_NORMS, **GATED}, layout="huggingface.interleaved"),
    defaults={
        **{key: value for key, value in LLAMA_DEFAULTS.items() if key not in ("attention_bias", "attention_dropout")},
        "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "use_bias": False,
    },
    keys={"attention_bias": "use_bias", "mlp_bias": "use_bias"},
    rope=RopeDefaults(theta=500_000.0),
)  # fmt: skip
HELIUM = HuggingFaceFamily(
    name="helium",
    architecture="Helium",
    tensors=ERNIE4_5.tensors,
    defaults={
        **LLAMA_DEFAULTS, "num_key_value_heads": 20, "head_dim": 128, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8, "mlp_bias": False,
    },
    attention={"out_bias": False},
    rope=RopeDefaults(theta=100_000.0),
)  # fmt: skip

RMS_NORM = (
    LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN2_VL, QWEN2_5_VL, QWEN3, QWEN3_VL, PHI3, OLMO2, OLMO3, EXAONE4, SMOLLM3,
    SEED_OSS, MINISTRAL3, HUNYUAN_DENSE, ARCEE, GRANITE, GLM, GLM4, ERNIE4_5, HELIUM,
)  # fmt: skip

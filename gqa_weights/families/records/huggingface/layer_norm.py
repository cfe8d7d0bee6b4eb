"""Dense families with LayerNorm, most of them with a parallel block."""

from __future__ import annotations

from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.layer_rules import GEMMA3_WINDOWS, where_sliding_window
from gqa_weights.families.records.huggingface.shared import COMMON, GATED, PRE_NORMS, names
from gqa_weights.families.tensors import TensorNames

DEFAULTS = {
    **COMMON, "hidden_act": "silu", "max_position_embeddings": 4096, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip

STARCODER2 = HuggingFaceFamily(
    name="starcoder2",
    architecture="Starcoder2",
    tensors=names({**PRE_NORMS, "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}),
    defaults={
        **COMMON, "num_key_value_heads": 2, "head_dim": None, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "tie_word_embeddings": True, "sliding_window": None,
        "use_bias": True, "embedding_dropout": 0.0, "residual_dropout": 0.0,
    },
    keys={"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": "use_bias"},
    model={"norm": "layer", "norm_bias": True, "gated": False},
    windows=where_sliding_window,
    dropouts=("embedding_dropout", "residual_dropout"),
)  # fmt: skip
STABLELM = HuggingFaceFamily(
    name="stablelm",
    architecture="StableLm",
    tensors=names({**PRE_NORMS, **GATED}),
    defaults={
        **DEFAULTS, "num_key_value_heads": 32, "use_qkv_bias": False, "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    keys={"rms_norm_eps": "layer_norm_eps", "attention_bias": "use_qkv_bias"},
    attention={"out_bias": False},
    model={"norm": "layer", "norm_bias": True},
    parallel="shared_norm",
    only={"qk_layernorm": (False, None)},
    ignored=frozenset({"hidden_dropout"}),
)  # fmt: skip
COHERE2 = HuggingFaceFamily(
    name="cohere2",
    architecture="Cohere2",
    tensors=names({"attention_norm": "input_layernorm", **GATED}, layout="huggingface.interleaved"),
    defaults={
        **DEFAULTS, "num_key_value_heads": None, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "attention_bias": False, "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None,
        "logit_scale": 0.0625,
    },
    keys={"rms_norm_eps": "layer_norm_eps"},
    model={"norm": "layer"},
    parallel="shared_norm",
    windows=GEMMA3_WINDOWS,
    rotates=GEMMA3_WINDOWS,
    only={
        "use_qk_norm": (False, None), "rotary_pct": (1.0, None), "use_gated_activation": (True,),
        "use_parallel_block": (True,), "position_embedding_type": ("rope_gptj",),
    },
    ignored=frozenset({
        "head_dim", "layer_switch", "order_of_interleaved_layers", "use_embedding_sharing", "use_parallel_embedding",
    }),
)  # fmt: skip
PHI = HuggingFaceFamily(
    name="phi",
    architecture="Phi",
    tensors=TensorNames(
        ends={"embed": "model.embed_tokens", "norm": "model.final_layernorm", "head": "lm_head"},
        block="model.layers.{}.", attention="self_attn.", layout="huggingface.phi", tied_head="lm_head.weight",
        modules={
            "attention_norm": "input_layernorm", "feed_forward.up": "mlp.fc1", "feed_forward.down": "mlp.fc2",
        },
        unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    ),
    defaults={
        **DEFAULTS, "num_key_value_heads": None, "hidden_act": "gelu_new", "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    keys={"rms_norm_eps": "layer_norm_eps"},
    attention={"qkv_bias": True, "out_bias": True},
    model={"norm": "layer", "norm_bias": True, "gated": False, "feed_forward_bias": True, "head_bias": True},
    parallel="shared_norm",
    dropouts=("embd_pdrop", "resid_pdrop"),
    requires={"tie_word_embeddings": False},  # a tied head would have the bias of one of its own
    only={"qk_layernorm": (False, None)},
)  # fmt: skip
GPT_NEOX = HuggingFaceFamily(
    name="gpt_neox",
    architecture="GPTNeoX",
    tensors=TensorNames(
        ends={"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "head": "embed_out"},
        block="gpt_neox.layers.{}.", attention="attention.", layout="gpt_neox", tied_head="embed_out.weight",
        modules={
            **PRE_NORMS, "feed_forward.up": "mlp.dense_h_to_4h", "feed_forward.down": "mlp.dense_4h_to_h",
        },
        unused=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    ),
    defaults={
        **{key: value for key, value in DEFAULTS.items() if key != "rope_theta"}, "hidden_act": "gelu",
        "max_position_embeddings": 2048, "attention_bias": True, "rotary_pct": 0.25, "rotary_emb_base": None,
        "hidden_dropout": 0.0, "use_parallel_residual": True,
    },
    keys={
        "rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base",
    },
    model={"norm": "layer", "norm_bias": True, "gated": False, "feed_forward_bias": True},
    parallel="own_norms",
    dropouts=("hidden_dropout",),
    ignored=frozenset({"classifier_dropout"}),
)  # fmt: skip
FALCON = HuggingFaceFamily(
    name="falcon",
    architecture="Falcon",
    tensors=TensorNames(
        ends={"embed": "transformer.word_embeddings", "norm": "transformer.ln_f", "head": "lm_head"},
        block="transformer.h.{}.", attention="self_attention.", layout="gpt_neox", tied_head="lm_head.weight",
        modules={
            "attention_norm": "ln_attn", "feed_forward_norm": "ln_mlp", "feed_forward.up": "mlp.dense_h_to_4h",
            "feed_forward.down": "mlp.dense_4h_to_h",
        },
        shared_norm="input_layernorm",
    ),
    defaults={
        **{key: value for key, value in DEFAULTS.items() if key not in ("layer_norm_eps", "hidden_act")},
        "layer_norm_epsilon": 1e-5, "activation": "gelu", "max_position_embeddings": 2048, "num_kv_heads": None,
        "bias": False, "ffn_hidden_size": None, "tie_word_embeddings": True, "num_ln_in_parallel_attn": None,
        "new_decoder_architecture": False, "parallel_attn": True, "alibi": False,
    },
    keys={
        "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation", "num_key_value_heads": "num_kv_heads",
        "attention_bias": "bias", "mlp_bias": "bias", "intermediate_size": "ffn_hidden_size",
    },
    model={"norm": "layer", "norm_bias": True, "gated": False},
    requires={"new_decoder_architecture": True, "parallel_attn": True, "alibi": False},
    only={"apply_residual_connection_post_layernorm": (False, None)},
    ignored=frozenset({"hidden_dropout", "multi_query"}),
)  # fmt: skip
NEMOTRON = HuggingFaceFamily(
    name="nemotron",
    architecture="Nemotron",
    tensors=names({**PRE_NORMS, "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"}),
    defaults={
        **{key: value for key, value in DEFAULTS.items() if key != "layer_norm_eps"}, "norm_eps": 1e-5,
        "num_key_value_heads": None, "head_dim": None, "hidden_act": "relu2", "attention_bias": False,
        "mlp_bias": False, "partial_rotary_factor": 0.5,
    },
    keys={"rms_norm_eps": "norm_eps"},
    model={"norm": "layer_plus_one", "norm_bias": True, "gated": False},
)  # fmt: skip

LAYER_NORM = (STARCODER2, STABLELM, COHERE2, PHI, GPT_NEOX, FALCON, NEMOTRON)

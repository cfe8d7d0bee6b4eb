"""The families of a GGUF file, by its `general.architecture`.

Source: llama.cpp's `convert_hf_to_gguf.py` and `src/llama-model.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_weights.families.gguf_fields import GgufFamily
from gqa_weights.families.tensors import TensorNames

GATED = {"feed_forward.gate": "ffn_gate", "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down"}
PRE_NORMS = {"attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm"}
POST_NORMS = {"attention_post_norm": "post_attention_norm", "feed_forward_post_norm": "post_ffw_norm"}


def _names(modules: Mapping[str, str], layout: str, *, gated: bool = True, **other: Any) -> TensorNames:
    fed = GATED if gated else {ours: theirs for ours, theirs in GATED.items() if not ours.endswith("gate")}
    return TensorNames(
        ends={"embed": "token_embd", "norm": "output_norm", "head": "output"}, block="blk.{}.", attention="",
        modules={**fed, **modules}, layout=layout, unused=(r"rope_freqs\.weight",), **other,
    )  # fmt: skip


LLAMA = GgufFamily(name="gguf.llama", origin="llama", tensors=_names(PRE_NORMS, "gguf.llama"))
QWEN2 = GgufFamily(name="gguf.qwen2", origin="qwen2", tensors=_names(PRE_NORMS, "gguf.qwen2"))
GEMMA3 = GgufFamily(
    name="gguf.gemma3",
    origin="gemma3_text",
    tensors=_names({**PRE_NORMS, **POST_NORMS}, "gguf.gemma3", one_plus_norms=True),
    theta=1_000_000.0,
    local_theta=10_000.0,
    full_every=6,
    attention={"qk_norm": "rms_plus_one"},
    model={"norm": "rms_plus_one", "norm_placement": "both", "activation": "gelu_tanh"},
    scaled_embedding=True,
    scale_of_width_layers=62,  # the 27B: a constant of llama.cpp's code
)

QWEN3 = GgufFamily(
    name="gguf.qwen3", origin="qwen3", tensors=_names(PRE_NORMS, "gguf.qwen2"), attention={"qk_norm": "rms"}
)
OLMO2 = GgufFamily(
    name="gguf.olmo2",
    origin="olmo2",
    tensors=_names(POST_NORMS, "gguf.qwen2"),
    attention={"qk_norm": "rms_full"},
    model={"norm_placement": "post"},
)
STARCODER2 = GgufFamily(
    name="gguf.starcoder2",
    origin="starcoder2",
    tensors=_names(PRE_NORMS, "gguf.qwen2", gated=False),
    epsilon="attention.layer_norm_epsilon",
    model={"norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu_tanh"},
)
GEMMA = GgufFamily(
    name="gguf.gemma",
    origin="gemma",
    tensors=_names(PRE_NORMS, "gguf.gemma3", one_plus_norms=True),
    model={"norm": "rms_plus_one", "activation": "gelu_tanh"},
    scaled_embedding=True,
)
GEMMA2 = GgufFamily(
    name="gguf.gemma2",
    origin="gemma2",
    tensors=GEMMA3.tensors,
    defaults={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 4096},
    full_every=2,
    model=GEMMA3.model,
    scaled_embedding=True,
    scale_of_width_layers=46,  # the 27B
)

GGUF = (LLAMA, QWEN2, QWEN3, OLMO2, STARCODER2, GEMMA, GEMMA2, GEMMA3)

"""Meta's own Llama files, params.json beside consolidated.00.pth, and Mistral's, beside consolidated.safetensors.

Mistral's files name the same tensors, and pair rows for RoPE in the same way.
"""

from __future__ import annotations

from gqa_weights.families.params_json import ParamsFamily
from gqa_weights.families.tensors import TensorNames

NAMES = TensorNames(
    ends={"embed": "tok_embeddings", "norm": "norm", "head": "output"}, block="layers.{}.", attention="attention.",
    modules={
        "attention_norm": "attention_norm", "feed_forward_norm": "ffn_norm", "feed_forward.gate": "feed_forward.w1",
        "feed_forward.up": "feed_forward.w3", "feed_forward.down": "feed_forward.w2",
    },
    layout="meta.llama", unused=(r"rope\.freqs",), tied_head="output.weight",
)  # fmt: skip

META_LLAMA = ParamsFamily(
    name="meta.llama",
    origin="llama",
    tensors=NAMES,
    defaults={
        "n_kv_heads": None, "vocab_size": -1, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5,
        "rope_theta": 10_000.0, "use_scaled_rope": False, "rope_scaling_factor": None, "max_seq_len": None,
    },
    required=("dim", "n_layers", "n_heads"),
    sized_by_tensors=("vocab_size", "multiple_of", "ffn_dim_multiplier"),
    only={"quantization_args": (None,)},
    ignored=frozenset({"max_batch_size", "model_parallel_size"}),
)  # fmt: skip
MISTRAL = ParamsFamily(
    name="mistral.consolidated",
    origin="mistral",
    tensors=NAMES,
    defaults={
        "n_kv_heads": None, "head_dim": None, "hidden_dim": None, "norm_eps": 1e-5, "rope_theta": 10_000.0,
        "sliding_window": None, "tied_embeddings": False, "max_seq_len": None,
    },
    required=("dim", "n_layers", "n_heads", "head_dim", "hidden_dim"),
    only={"model_type": (None, "transformer"), "causal": (True, None), "use_biases": (False, None)},
    ignored=frozenset({"max_batch_size", "max_position_embeddings"}),
)  # fmt: skip

CONSOLIDATED = (MISTRAL, META_LLAMA)  # Mistral's files have all of Meta's required keys too

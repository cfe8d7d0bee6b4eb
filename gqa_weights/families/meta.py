"""Meta's own Llama files: params.json <-> ModelConfig, and where the tensors of consolidated.00.pth stand.

Source: `llama/model.py` of meta-llama/llama, llama3 and llama-models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqa_spec.config import AttentionConfig, Llama3Scaling, RopeConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights.families.lazy import Source
from gqa_weights.families.names import Names
from gqa_weights.families.settings import MOST_LAYERS, Settings

FILE = "params.json"
FAMILY = "meta.llama"
DEFAULTS: dict[str, Any] = {
    "n_kv_heads": None, "vocab_size": -1, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5,
    "rope_theta": 10_000.0, "use_scaled_rope": False, "rope_scaling_factor": None, "max_seq_len": None,
}  # fmt: skip
# The constants of apply_scaling in Meta's code; the factor is 8 for Llama 3.1 and 32 for 3.2, and not in the file.
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
UNUSED = ("max_batch_size", "model_parallel_size", "quantization_args")


def read_config(family: str, values: Mapping[str, Any], tensors: Source) -> ModelConfig:
    """The sizes of the feed-forward and the vocabulary come from the tensors: -1 is Llama 2's vocab_size."""
    s = Settings(values, FILE, family, DEFAULTS)
    width, layers, heads = s.integer("dim"), s.integer("n_layers", most=MOST_LAYERS), s.integer("n_heads")
    layer = AttentionConfig(
        embed_dim=width, num_heads=heads, num_kv_heads=s.integer("n_kv_heads", optional=True) or heads, causal=True,
        rope=RopeConfig(theta=float(s.number("rope_theta")), scaling=_scaling(s)),
    )  # fmt: skip
    for key in ("vocab_size", "multiple_of", "ffn_dim_multiplier"):
        s.asked.add(key)
    s.only("quantization_args", None)
    config = ModelConfig(
        attention=(layer,) * layers,
        feed_forward_size=_rows(tensors, "layers.0.feed_forward.w1.weight"),
        vocab_size=_rows(tensors, "tok_embeddings.weight"),
        norm_eps=s.number("norm_eps"),
        tied="output.weight" not in tensors,
        max_length=s.integer("max_seq_len", optional=True),
    )
    s.finish(UNUSED)
    return config


def _scaling(s: Settings) -> Llama3Scaling | None:
    factor = s.number("rope_scaling_factor", optional=True)
    if not s.flag("use_scaled_rope"):
        return None
    if factor is None:
        raise s.unsupported("use_scaled_rope", " without rope_scaling_factor: add 8 for Llama 3.1, 32 for Llama 3.2")
    return Llama3Scaling(factor=factor, **LLAMA3)


def _rows(tensors: Source, name: str) -> int:
    if name not in tensors:
        raise ValueError(f"{FILE}: missing {name} of family {FAMILY}")
    return tensors.info(name).shape[0]


def write_config(family: str, config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> params.json, as far as its keys go: the caller reads it back to see what they left out."""
    first = config.attention[0]
    if first.head_dim * first.num_heads != config.hidden_size:
        sizes = f"H = {first.head_dim}, D = {config.hidden_size}, N = {first.num_heads}"
        raise ValueError(f"family {family} has no setting for head_dim, which is D / N in its code: got {sizes}")
    settings = {
        "dim": config.hidden_size, "n_layers": config.num_layers, "n_heads": first.num_heads,
        "n_kv_heads": first.num_kv_heads, "vocab_size": config.vocab_size, "norm_eps": config.norm_eps,
    }  # fmt: skip
    if config.max_length is not None:
        settings["max_seq_len"] = config.max_length
    if first.rope is not None:
        settings["rope_theta"] = first.rope.theta
        if isinstance(first.rope.scaling, Llama3Scaling):
            settings |= {"use_scaled_rope": True, "rope_scaling_factor": first.rope.scaling.factor}
    return settings


NAMES = {
    FAMILY: Names(
        ends={"embed": "tok_embeddings", "norm": "norm", "head": "output"}, block="layers.{}.", attention="attention.",
        modules={
            "attention_norm": "attention_norm", "feed_forward_norm": "ffn_norm", "feed_forward.gate": "feed_forward.w1",
            "feed_forward.up": "feed_forward.w3", "feed_forward.down": "feed_forward.w2",
        },
        layout="meta.llama", unused=(r"rope\.freqs",),
    )
}  # fmt: skip

"""The families of a GGUF file: its key-value fields and tensors -> ModelConfig, and back by `gguf_written`.

A GGUF leaves some settings to the reader's code: whether there are biases and an output matrix follows from the
tensors; Gemma 3's pattern of windows, the base of its windowed layers and the scale of its 27B are constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import MOST_LAYERS, ModelConfig
from gqa_spec.rope import LinearScaling, LongropeScaling, RopeConfig, RopeScaling, YarnScaling
from gqa_weights.families.converted import TensorMapping
from gqa_weights.families.gguf_written import as_read, divisors, written_fields
from gqa_weights.families.record import Family, Values, rows
from gqa_weights.families.settings import Settings
from gqa_weights.families.tensors import StoredTensor

FILE = "GGUF"
PREFIX = "gguf."  # of a family's name, before its general.architecture
SOFTCAP = "attn_logit_softcapping"
FREQUENCIES = "rope_freqs.weight"  # Llama 3's scaling, as one divisor for each frequency
IGNORED = ("rope.scaling.finetuned", "tensor_data_layout", "vocab_size")
# Fields of which all but these values would change the maths.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_weights_scale": (1.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
}
OPTIONAL = (
    "attention.key_length", "attention.value_length", "rope.dimension_count", "final_logit_softcapping",
    "rope.scaling.factor", "rope.scaling.original_context_length",
)  # fmt: skip


def check_whole(fields: Values) -> None:
    """Raises ValueError for a part of a model, of which the first alone has the fields, and for a file without them."""
    count = fields.get("split.count", 1)
    if count != 1:
        raise ValueError(f"a part of a model that is split into {count}: join them by `llama-gguf-split --merge` first")
    if "general.architecture" not in fields:
        raise ValueError(f"no general.architecture, which names the family, in its {len(fields)} fields")


@dataclass(frozen=True, kw_only=True)
class GgufFamily(Family):
    """theta: the base where the file is silent; defaults: what llama.cpp's code then takes for other fields.
    local_theta: the base of layers with a window. full_every: each so many layers one has no window; None: no layer
    has one. epsilon: the field of the norms'. attention, model: fields of the configs that llama.cpp's code fixes.
    scaled_embedding: the embedding is multiplied by the root of the width. scale_of_width_layers: in models of so many
    layers the scale is that of heads of embed_dim / num_heads.
    """

    theta: float = 10_000.0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    epsilon: str = "attention.layer_norm_rms_epsilon"
    local_theta: float | None = None
    full_every: int | None = None
    attention: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    scaled_embedding: bool = False
    scale_of_width_layers: int | None = None

    file: ClassVar[str] = FILE

    @property
    def writable(self) -> bool:
        return True

    @property
    def architecture(self) -> str:
        return self.name.removeprefix(PREFIX)

    def read_config(self, values: Values, tensors: TensorMapping) -> ModelConfig:
        s = _settings(self, values)
        width, layers = s.integer("embedding_length"), s.integer("block_count", most=MOST_LAYERS)
        eps = _decimal(s.number(self.epsilon))
        config = ModelConfig(
            attention=_attention(self, s, layers, eps, tensors),
            feed_forward_size=s.integer("feed_forward_length"),
            vocab_size=rows(tensors, "token_embd.weight", self),
            norm_eps=eps,
            feed_forward_bias="blk.0.ffn_up.bias" in tensors,
            tied="output.weight" not in tensors,
            embedding_scale=width**0.5 if self.scaled_embedding else 1.0,
            logit_softcap=s.number("final_logit_softcapping", optional=True),
            max_length=s.integer("context_length"),
            **self.model,
        )
        for key, allowed in ONLY.items():
            s.only(key, *allowed)
        s.finish(IGNORED)
        return config

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        return written_fields(self.architecture, config, windows=self.full_every is not None, epsilon=self.epsilon)

    def as_read(self, config: ModelConfig) -> ModelConfig:
        return as_read(config)

    def constants(self, config: ModelConfig) -> tuple[StoredTensor, ...]:
        """Llama 3's scaling is a tensor."""
        found = next((found for layer in config.attention if (found := divisors(layer)) is not None), None)
        if found is None:
            return ()
        stored = np.array(found, np.float32)
        return (StoredTensor({}, FREQUENCIES, stored.shape, lambda array: {}, lambda given: stored),)


def _settings(family: GgufFamily, values: Values) -> Settings:
    """The fields of the architecture, without its name in front: llama.cpp reads no others for the maths."""
    prefix = f"{family.architecture}."
    inside = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    if values.get("split.count", 1) > 1:
        raise ValueError(f"{FILE}: split.count {values['split.count']!r} of family {family.name} is not supported")
    defaults = {**dict.fromkeys(OPTIONAL), "rope.freq_base": family.theta, "rope.scaling.type": "none"}
    defaults |= family.defaults
    if "attention.head_count" in inside:
        defaults["attention.head_count_kv"] = inside["attention.head_count"]
    return Settings(inside, FILE, family.name, defaults)


def _attention(
    family: GgufFamily, s: Settings, layers: int, eps: float, tensors: TensorMapping
) -> tuple[AttentionConfig, ...]:
    width, heads = s.integer("embedding_length"), s.integer("attention.head_count")
    shared = {
        "embed_dim": width, "num_heads": heads, "head_dim": _head_dim(s, width), "causal": True,
        "num_kv_heads": s.integer("attention.head_count_kv"),
        "qkv_bias": "blk.0.attn_q.bias" in tensors, "out_bias": "blk.0.attn_output.bias" in tensors,
        **family.attention,
    }  # fmt: skip
    if "qk_norm" in shared:
        shared["qk_norm_eps"] = eps
    if SOFTCAP in family.defaults:
        shared["softcap"] = s.number(SOFTCAP)
    if layers == family.scale_of_width_layers:
        shared["scale"] = (width // heads) ** -0.5
    whole = RopeConfig(theta=_decimal(s.number("rope.freq_base")), scaling=_scaling(s, tensors))
    local = whole if family.local_theta is None else RopeConfig(theta=family.local_theta)
    window = s.integer("attention.sliding_window") if family.full_every else None
    return tuple(
        AttentionConfig(**shared, window=window if slides else None, rope=local if slides else whole)
        for slides in _slides(family.full_every, layers)
    )


def _slides(full_every: int | None, layers: int) -> list[bool]:
    return [full_every is not None and (layer + 1) % full_every != 0 for layer in range(layers)]


def _head_dim(s: Settings, width: int) -> int:
    head_dim: int = s.integer("attention.key_length", optional=True) or width // s.integer("attention.head_count")
    for key in ("attention.value_length", "rope.dimension_count"):
        if s.integer(key, optional=True) not in (None, head_dim):
            raise s.unsupported(key, f" beside heads of {head_dim}")
    return head_dim


def _scaling(s: Settings, tensors: TensorMapping) -> RopeScaling | None:
    kind = s.get("rope.scaling.type")
    factor = s.number("rope.scaling.factor", optional=True)
    original = s.integer("rope.scaling.original_context_length", optional=True)
    if FREQUENCIES in tensors:
        return _divisors(s, tensors, kind)
    if kind == "linear" and factor is not None:
        return LinearScaling(factor=_decimal(factor))
    if kind == "yarn" and factor is not None and original is not None:
        return YarnScaling(factor=_decimal(factor), original_max_position_embeddings=original)
    if kind != "none":
        raise s.unsupported("rope.scaling.type")
    return None


def _divisors(s: Settings, tensors: TensorMapping, kind: Any) -> LongropeScaling:
    if kind != "none":
        raise s.unsupported("rope.scaling.type", f" beside {FREQUENCIES}")
    divisors = tuple(float(value) for value in np.asarray(tensors[FREQUENCIES]).ravel())
    return LongropeScaling(
        short_factor=divisors, long_factor=divisors, original_max_position_embeddings=s.integer("context_length"),
        factor=1.0, attention_factor=1.0,
    )  # fmt: skip


def _decimal(value: float) -> float:
    """A GGUF holds float32: 1e-5 that went through it, not 9.99999974e-06."""
    return float(str(np.float32(value)))

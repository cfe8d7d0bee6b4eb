"""The families of a params.json beside consolidated files, Meta's and Mistral's: params.json <-> ModelConfig.

Source: `llama/model.py` of meta-llama/llama, llama3 and llama-models; `args.py` and `transformer.py` of
mistral-inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gqa_spec.config import DERIVED, AttentionConfig
from gqa_spec.model_config import MOST_LAYERS, ModelConfig
from gqa_spec.rope import Llama3Scaling, RopeConfig
from gqa_weights.families.converted import TensorMapping
from gqa_weights.families.record import Family, Values, rows
from gqa_weights.families.settings import Settings

FILE = "params.json"
# The constants of apply_scaling in Meta's code; the factor is 8 for Llama 3.1 and 32 for 3.2, and not in the file.
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, kw_only=True)
class ParamsFamily(Family):
    """defaults: each key that its code reads -> what the code takes where the key is missing. required: the keys by
    which a file of it is recognised. sized_by_tensors: keys of sizes that the tensors say, such as Llama 2's
    vocab_size of -1. only: keys of which all but these values would change the maths. ignored: keys that do not matter.
    """

    defaults: Mapping[str, Any]
    required: tuple[str, ...]
    sized_by_tensors: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    file: ClassVar[str] = FILE

    @property
    def writable(self) -> bool:
        return True

    def read_config(self, values: Values, tensors: TensorMapping) -> ModelConfig:
        s = Settings(values, FILE, self.name, self.defaults)
        width, layers, heads = s.integer("dim"), s.integer("n_layers", most=MOST_LAYERS), s.integer("n_heads")
        layer = AttentionConfig(
            embed_dim=width,
            num_heads=heads,
            num_kv_heads=s.integer("n_kv_heads", optional=True) or heads,
            head_dim=s.integer("head_dim") if s.reads("head_dim") else DERIVED,
            causal=True,
            window=s.integer("sliding_window", optional=True) if s.reads("sliding_window") else None,
            rope=RopeConfig(theta=float(s.number("rope_theta")), scaling=_scaling(s)),
        )
        for key, allowed in self.only.items():
            s.only(key, *allowed)
        config = ModelConfig(
            attention=(layer,) * layers,
            norm_eps=s.number("norm_eps"),
            max_length=s.integer("max_seq_len", optional=True),
            **self._sizes(s, tensors),
        )
        s.skip(*self.sized_by_tensors)
        s.finish(self.ignored)
        return config

    def _sizes(self, s: Settings, tensors: TensorMapping) -> dict[str, Any]:
        """The sizes around attention, and whether the head is tied, where the file or the tensors say so."""
        ends, block = self.tensors.ends, self.tensors.block.format(0)
        if s.reads("hidden_dim"):
            return {
                "feed_forward_size": s.integer("hidden_dim"),
                "vocab_size": s.integer("vocab_size"),
                "tied": s.flag("tied_embeddings"),
            }
        return {
            "feed_forward_size": rows(tensors, f"{block}{self.tensors.modules['feed_forward.gate']}.weight", self),
            "vocab_size": rows(tensors, f"{ends['embed']}.weight", self),
            "tied": f"{ends['head']}.weight" not in tensors,
        }

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        first = config.attention[0]
        table = {
            "head_dim": first.head_dim,
            "hidden_dim": config.feed_forward_size,
            "sliding_window": first.window,
            "tied_embeddings": config.tied,
            "max_seq_len": config.max_length,
        }
        own = {key: value for key, value in table.items() if key in self.defaults and value is not None}
        if "head_dim" not in own and first.head_dim * first.num_heads != config.hidden_size:
            sizes = f"H = {first.head_dim}, D = {config.hidden_size}, N = {first.num_heads}"
            raise ValueError(f"family {self.name} has no setting for head_dim, which is D / N in its code: got {sizes}")
        settings = {
            "dim": config.hidden_size,
            "n_layers": config.num_layers,
            "n_heads": first.num_heads,
            "n_kv_heads": first.num_kv_heads,
            "vocab_size": config.vocab_size,
            "norm_eps": config.norm_eps,
            **own,
        }
        if first.rope is not None:
            settings["rope_theta"] = first.rope.theta
            if isinstance(first.rope.scaling, Llama3Scaling):
                settings |= {"use_scaled_rope": True, "rope_scaling_factor": first.rope.scaling.factor}
        return settings


def _scaling(s: Settings) -> Llama3Scaling | None:
    if not s.reads("use_scaled_rope"):
        return None
    factor = s.number("rope_scaling_factor", optional=True)
    if not s.flag("use_scaled_rope"):
        return None
    if factor is None:
        raise s.unsupported("use_scaled_rope", " without rope_scaling_factor: add 8 for Llama 3.1, 32 for Llama 3.2")
    return Llama3Scaling(factor=factor, **LLAMA3)

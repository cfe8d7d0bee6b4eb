"""The experts of a config.json, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gqa_spec.experts_config import ExpertsConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights.families.settings import Settings

# Keys of training, or of what a model returns beside its logits.
OF_TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
CLAMPED = ("swiglu_limit", "swiglu_alpha")


@dataclass(frozen=True, kw_only=True)
class ExpertKeys:
    """What a family's code takes for its experts.

    count: the key for how many there are; alias: another that means the same. size: the key for the width inside each.
    normalised: whether the weights of a token's experts sum to 1; None where `norm_topk_prob` says. shared: the key for
    the width of a feed-forward that all tokens go to as well. fixed: further fields of ExpertsConfig.
    """

    count: str
    alias: str = ""
    size: str = "intermediate_size"
    normalised: bool | None = True
    shared: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)


def read_experts(keys: ExpertKeys, s: Settings, layers: int) -> ExpertsConfig | None:
    """The experts; None where no layer has any."""
    dense = _dense_layers(s, layers)
    count = _count(keys, s)
    chosen, size = s.integer("num_experts_per_tok"), s.integer(keys.size)
    normalised = s.flag("norm_topk_prob") if keys.normalised is None else keys.normalised
    clamped: dict[str, Any] = {key: float(s.number(key)) for key in CLAMPED if s.reads(key)}
    shared: dict[str, Any] = {"shared_size": _integer_or_0(s, keys.shared) or None} if keys.shared else {}
    if len(dense) == layers or count == 0:
        return None
    return ExpertsConfig(
        num_experts=count,
        num_experts_per_token=chosen,
        expert_size=size,
        normalise=normalised,
        dense_layers=dense,
        **clamped,
        **shared,
        **keys.fixed,
    )


def written_experts(keys: ExpertKeys, config: ModelConfig) -> dict[str, Any]:
    """The keys of a model that has experts."""
    experts = config.experts
    if experts is None:
        return {}
    sizes = {} if keys.size == "intermediate_size" else {keys.size: experts.expert_size}
    clamped = {key: getattr(experts, key) for key in CLAMPED if getattr(experts, key) is not None}
    return {
        keys.count: experts.num_experts,
        "num_experts_per_tok": experts.num_experts_per_token,
        "norm_topk_prob": experts.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
        **sizes,
        **clamped,
        **({keys.shared: experts.shared_size or 0} if keys.shared else {}),
    }


def _count(keys: ExpertKeys, s: Settings) -> int:
    if keys.alias in s.values:
        s.done.add(keys.alias)
        if s.values.get(keys.count, s.values[keys.alias]) != s.values[keys.alias]:
            raise s.unsupported(keys.count, f" beside {keys.alias} {s.values[keys.alias]!r}")
        if keys.count not in s.values:
            s.values = {**s.values, keys.count: s.values[keys.alias]}
    return _integer_or_0(s, keys.count)


def _integer_or_0(s: Settings, key: str) -> int:
    return 0 if s.get(key) == 0 else int(s.integer(key))


def _dense_layers(s: Settings, layers: int) -> tuple[int, ...]:
    """Qwen's two keys for layers without experts."""
    if not s.reads("decoder_sparse_step"):
        return ()
    step, listed = s.integer("decoder_sparse_step"), s.get("mlp_only_layers") or []
    if not isinstance(listed, list | tuple) or not all(isinstance(layer, int) for layer in listed):
        raise s.wrong("mlp_only_layers", "a list of numbers of layers")
    return tuple(layer for layer in range(layers) if layer in listed or (layer + 1) % step)

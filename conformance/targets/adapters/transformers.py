"""Attention of transformers: the functions behind `attn_implementation`, and the modules of whole families.

The functions get masks as they are. A family's module gets what its model would give it: a padding mask (B, 1, 1, S)
goes through the model's own `create_causal_mask`, any other mask is handed on unchanged, as its models do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor as Array
from torch import nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from conformance.targets.protocol import Unsupported
from gqa_spec import RopeConfig
from gqa_weights.families.rope_json import write_scaling


def _module(query: Array, key: Array) -> Any:
    groups = query.shape[1] // key.shape[1]
    return SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=False, config=None)


def eager(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, scale: float | None = None
) -> tuple[Array, Array]:
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    context, weights = eager_attention_forward(_module(query, key), query, key, value, mask, scaling)
    return context.transpose(1, 2), weights


def sdpa(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    if causal and mask is not None:
        raise Unsupported("its models put causal into the mask")
    if mask is not None:
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    context, _ = sdpa_attention_forward(_module(query, key), query, key, value, mask, scaling=scale, is_causal=causal)
    return context.transpose(1, 2)


@dataclass(frozen=True)
class Family:
    """prefix: of its classes. config: its configuration class. biases: has one switch for all of them. per_kind: its
    RoPE parameters are given by kind of layer. half_tables: its cos and sin have one entry for each pair.
    """

    prefix: str
    config: str
    biases: bool = True
    per_kind: bool = False
    half_tables: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", "LlamaConfig"),
    "mistral": Family("Mistral", "MistralConfig", biases=False),
    "qwen3": Family("Qwen3", "Qwen3Config"),
    "gemma2": Family("Gemma2", "Gemma2Config"),
    "gemma3": Family("Gemma3", "Gemma3TextConfig", per_kind=True),
    "gpt_oss": Family("GptOss", "GptOssConfig", half_tables=True),
}


class FamilyAttention(nn.Module):
    """The attention module of one family, with its rotary embedding and its model's masks."""

    def __init__(
        self,
        family: str,
        implementation: str,
        *,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
        rope: RopeConfig | None = None,
        qk_norm: str | None = None,
        sinks: bool = False,
    ) -> None:
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        if rope is not None and (rope.pairing != "half" or rope.rotary_dim is not None):
            raise Unsupported("half pairs over the whole head only")
        if window is not None and not causal:
            raise Unsupported("a window is causal")
        of = FAMILIES[family]
        kind = "full_attention" if window is None else "sliding_attention"
        parameters, context = _rope_parameters(rope)
        head_dim = head_dim or embed_dim // num_heads
        own: dict[str, Any] = {"attention_bias": qkv_bias} if of.biases else {}
        if family.startswith("gemma"):
            own["query_pre_attn_scalar"] = _query_scalar(scale, head_dim)
        if family == "gemma2":
            own["attn_logit_softcapping"] = softcap
        if family == "qwen3":
            own["use_sliding_window"] = window is not None
        package = import_module(f"transformers.models.{family}")
        modeling = import_module(f"transformers.models.{family}.modeling_{family}")
        self.config = getattr(package, of.config)(
            hidden_size=embed_dim,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            num_hidden_layers=1,
            layer_types=[kind],
            sliding_window=window,
            attention_dropout=dropout,
            max_position_embeddings=context,
            attn_implementation=implementation,
            rope_parameters={kind: parameters} if of.per_kind else parameters,
            **own,
        )
        self.config.is_causal = causal  # which its mask functions read
        self.inner = getattr(modeling, f"{of.prefix}Attention")(self.config, layer_idx=0)
        self.inner.is_causal = causal
        self.rotary = getattr(modeling, f"{of.prefix}RotaryEmbedding")(self.config) if rope is not None else None
        self.kind = kind if of.per_kind else None
        self.causal, self.window, self.half_tables = causal, window, of.half_tables

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.inner.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in weights.items()})

    def forward(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        if key is not None or value is not None:
            raise Unsupported("self-attention only")
        return self._attend(query, mask, None)

    def init_cache(self, batch_size: int, *, rolling: bool = False) -> DynamicCache:
        """It grows as it is filled; a layer with a window forgets what has left it."""
        return DynamicCache(config=self.config)

    def extend(self, x: Array, cache: DynamicCache) -> tuple[Array, DynamicCache]:
        return self._attend(x, None, cache)[0], cache

    def _attend(self, x: Array, mask: Array | None, cache: DynamicCache | None) -> tuple[Array, Array | None]:
        start = 0 if cache is None else cache.get_seq_length()
        positions = (start + torch.arange(x.shape[1]))[None].expand(x.shape[0], -1)
        output, weights = self.inner(
            x,
            position_embeddings=self._tables(x, positions),
            attention_mask=self._mask(x, positions, mask, cache),
            past_key_values=cache,
        )[:2]
        return output, weights

    def _tables(self, x: Array, positions: Array) -> tuple[Array, Array]:
        """cos and sin; without RoPE 1 and 0."""
        if self.rotary is not None:
            return self.rotary(x, positions, self.kind) if self.kind else self.rotary(x, positions)
        one = torch.ones(1, x.shape[1], self.config.head_dim // (2 if self.half_tables else 1), dtype=x.dtype)
        return one, torch.zeros_like(one)

    def _mask(self, x: Array, positions: Array, mask: Array | None, cache: DynamicCache | None) -> Array | None:
        """What the family's model makes of the mask, of its causal setting and of its window."""
        padding = mask is not None and mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1)
        if mask is not None and not padding:
            if self.causal:
                raise Unsupported("a mask of (T, S) is taken as it is: causal belongs in it")
            return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        given = mask[:, 0, 0] if padding and mask is not None else None
        make = create_causal_mask if self.window is None else create_sliding_window_causal_mask
        made: Any = make(self.config, x, given, cache, positions)
        return made


def _rope_parameters(rope: RopeConfig | None) -> tuple[dict[str, Any], int]:
    """Also `max_position_embeddings`, which dynamic NTK takes for the original context."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4 if rope is None else rope.theta}
    parameters |= (rope and write_scaling(rope.scaling)) or {}
    original = parameters.get("original_max_position_embeddings", 2048)
    if parameters["rope_type"] == "dynamic":
        del parameters["original_max_position_embeddings"]
        return parameters, original
    return parameters, round(original * parameters.get("factor", 1))


def _query_scalar(scale: float | None, head_dim: int) -> int:
    """Gemma's `query_pre_attn_scalar`, whose inverse root is the scale."""
    scalar = head_dim if scale is None else scale**-2
    if scalar != round(scalar):
        raise Unsupported("query_pre_attn_scalar is an integer")
    return round(scalar)

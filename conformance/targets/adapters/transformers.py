"""Attention of transformers: the functions behind `attn_implementation`, and the modules of whole families.

Masks are made as its models make them: a boolean becomes 0 and finfo.min for eager, and stays one for sdpa.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

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


def _as_bias(mask: Array | None, dtype: torch.dtype) -> Array | None:
    """What `masking_utils.eager_mask` makes of a boolean."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.tensor(0.0, dtype=dtype)
    return torch.where(mask, zero, torch.finfo(dtype).min)


def _module(query: Array, key: Array) -> Any:
    groups = query.shape[1] // key.shape[1]
    return SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=False, config=None)


def eager(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, scale: float | None = None
) -> tuple[Array, Array]:
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    bias = _as_bias(mask, query.dtype)
    context, weights = eager_attention_forward(_module(query, key), query, key, value, bias, scaling)
    return context.transpose(1, 2), weights


def sdpa(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False,
    scale: float | None = None,
) -> Array:  # fmt: skip
    if causal and mask is not None:
        raise Unsupported("its models put causal into the mask")
    if mask is not None:
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    context, _ = sdpa_attention_forward(_module(query, key), query, key, value, mask, scaling=scale, is_causal=causal)
    return context.transpose(1, 2)


class _Family(nn.Module):
    """One family's attention module (eager), its rotary embedding and its masks."""

    family: ClassVar[str]
    prefix: ClassVar[str]
    config_name: ClassVar[str]

    def _build(self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None, **given: Any) -> None:
        rope: RopeConfig | None = given.pop("rope")
        self.causal: bool = given.pop("causal")
        if rope is not None and (rope.pairing != "half" or rope.rotary_dim is not None):
            raise Unsupported("half pairs over the whole head only")
        package = import_module(f"transformers.models.{self.family}")
        modeling = import_module(f"transformers.models.{self.family}.modeling_{self.family}")
        self.window: int | None = given.pop("window", None)
        kind = "full_attention" if self.window is None else "sliding_attention"
        parameters, context = _rope_parameters(rope)
        per_kind = self.family == "gemma3"
        self.config = getattr(package, self.config_name)(
            hidden_size=embed_dim, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads,
            head_dim=head_dim or embed_dim // num_heads, num_hidden_layers=1, layer_types=[kind],
            sliding_window=self.window, attn_implementation="eager", max_position_embeddings=context,
            rope_parameters={kind: parameters} if per_kind else parameters, **given,
        )  # fmt: skip
        self.inner = getattr(modeling, f"{self.prefix}Attention")(self.config, layer_idx=0)
        self.rotary = getattr(modeling, f"{self.prefix}RotaryEmbedding")(self.config) if rope is not None else None
        self.kind = kind if per_kind else None

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.inner.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in weights.items()})

    def forward(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        if key is not None or value is not None:
            raise Unsupported("self-attention only")
        return self._attended(query, mask, None)

    def init_cache(self, batch_size: int, *, rolling: bool = False) -> DynamicCache:
        """It grows as it is filled; a layer with a window forgets what has left it."""
        return DynamicCache(config=self.config)

    def extend(self, x: Array, cache: DynamicCache) -> tuple[Array, DynamicCache]:
        return self._attended(x, None, cache)[0], cache

    def _attended(self, x: Array, mask: Array | None, cache: DynamicCache | None) -> tuple[Array, Array | None]:
        start = 0 if cache is None else cache.get_seq_length()
        positions = (start + torch.arange(x.shape[1]))[None].expand(x.shape[0], -1)
        output, weights = self.inner(
            x, position_embeddings=self._angles(x, positions),
            attention_mask=self._mask(x, positions, mask, cache), past_key_values=cache,
        )[:2]  # fmt: skip
        return output, weights

    def _angles(self, x: Array, positions: Array) -> tuple[Array, Array]:
        if self.rotary is not None:
            return self.rotary(x, positions, self.kind) if self.kind else self.rotary(x, positions)
        sizes = self.config.head_dim // (2 if self.family == "gpt_oss" else 1)
        one = torch.ones(1, x.shape[1], sizes, dtype=x.dtype)
        return one, torch.zeros_like(one)

    def _mask(self, x: Array, positions: Array, mask: Array | None, cache: DynamicCache | None) -> Array | None:
        if not self.causal:
            if self.window is not None:
                raise Unsupported("a window is causal")
            return _as_bias(mask, x.dtype)
        make = create_causal_mask if self.window is None else create_sliding_window_causal_mask
        made: Any = make(self.config, x, None, cache, positions)
        if mask is None:
            return made
        return torch.where(mask, made, torch.finfo(x.dtype).min) if mask.dtype == torch.bool else made + mask


def _rope_parameters(rope: RopeConfig | None) -> tuple[dict[str, Any], int]:
    """Also `max_position_embeddings`, which is where dynamic NTK looks for the original context."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4 if rope is None else rope.theta}
    parameters |= (rope and write_scaling(rope.scaling)) or {}
    original = parameters.get("original_max_position_embeddings", 2048)
    if parameters["rope_type"] == "dynamic":
        del parameters["original_max_position_embeddings"]
        return parameters, original
    return parameters, round(original * parameters.get("factor", 1))


def _scalar(scale: float | None, head_dim: int) -> int:
    """Gemma's `query_pre_attn_scalar`, whose inverse root is the scale."""
    scalar = head_dim if scale is None else scale**-2
    if scalar != round(scalar):
        raise Unsupported("query_pre_attn_scalar is an integer")
    return round(scalar)


class Llama(_Family):
    family, prefix, config_name = "llama", "Llama", "LlamaConfig"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None, qkv_bias: bool = False,
        out_bias: bool = False, causal: bool = False, rope: RopeConfig | None = None, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self._build(
            embed_dim, num_heads, num_kv_heads, head_dim, attention_bias=qkv_bias, causal=causal, rope=rope,
            attention_dropout=dropout,
        )  # fmt: skip


class Mistral(_Family):
    family, prefix, config_name = "mistral", "Mistral", "MistralConfig"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None, causal: bool = False,
        window: int | None = None, rope: RopeConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._build(embed_dim, num_heads, num_kv_heads, head_dim, causal=causal, window=window, rope=rope)


class Qwen3(_Family):
    family, prefix, config_name = "qwen3", "Qwen3", "Qwen3Config"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, qk_norm: str, head_dim: int | None = None,
        qkv_bias: bool = False, out_bias: bool = False, causal: bool = False, window: int | None = None,
        rope: RopeConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self._build(
            embed_dim, num_heads, num_kv_heads, head_dim, attention_bias=qkv_bias, causal=causal, rope=rope,
            window=window, use_sliding_window=window is not None,
        )  # fmt: skip


class Gemma2(_Family):
    family, prefix, config_name = "gemma2", "Gemma2", "Gemma2Config"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None, qkv_bias: bool = False,
        out_bias: bool = False, causal: bool = False, window: int | None = None, scale: float | None = None,
        softcap: float | None = None, rope: RopeConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self._build(
            embed_dim, num_heads, num_kv_heads, head_dim, attention_bias=qkv_bias, causal=causal, rope=rope,
            window=window, attn_logit_softcapping=softcap,
            query_pre_attn_scalar=_scalar(scale, head_dim or embed_dim // num_heads),
        )  # fmt: skip


class Gemma3(_Family):
    family, prefix, config_name = "gemma3", "Gemma3", "Gemma3TextConfig"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, qk_norm: str, head_dim: int | None = None,
        qkv_bias: bool = False, out_bias: bool = False, causal: bool = False, window: int | None = None,
        scale: float | None = None, rope: RopeConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self._build(
            embed_dim, num_heads, num_kv_heads, head_dim, attention_bias=qkv_bias, causal=causal, rope=rope,
            window=window, query_pre_attn_scalar=_scalar(scale, head_dim or embed_dim // num_heads),
        )  # fmt: skip


class GptOss(_Family):
    family, prefix, config_name = "gpt_oss", "GptOss", "GptOssConfig"

    def __init__(
        self, embed_dim: int, num_heads: int, num_kv_heads: int, sinks: bool, head_dim: int | None = None,
        qkv_bias: bool = False, out_bias: bool = False, causal: bool = False, window: int | None = None,
        rope: RopeConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self._build(
            embed_dim, num_heads, num_kv_heads, head_dim, attention_bias=qkv_bias, causal=causal, rope=rope,
            window=window,
        )  # fmt: skip

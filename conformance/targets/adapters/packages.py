"""Packages that are judged where they are installed. Each is imported when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.targets.protocol import Unsupported, refusing
from gqa_spec import AttentionConfig, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from gqa_spec.config import QKNorm
from gqa_spec.rope import RopeScaling
from gqa_weights import LAYOUTS, from_canonical

Array = np.ndarray


def x_transformers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    flash: bool = False,
) -> Any:
    """x_transformers.attend.Attend: boolean masks, biases by `attn_bias`; the cap is `softclamp_logits`."""
    from x_transformers.attend import Attend

    boolean = mask is not None and mask.dtype.is_floating_point is False
    (B, N, T, _), S = query.shape, key.shape[2]
    attend = Attend(
        heads=N,
        causal=causal,
        scale=scale,
        flash=flash,
        softclamp_logits=softcap is not None,
        logit_softclamp_value=softcap or 50.0,
    ).eval()
    shown = mask.expand(B, N, T, S) if mask is not None and boolean else None
    added = mask.expand(B, N, T, S) if mask is not None and not boolean else None
    context, intermediates = attend(query, key, value, mask=shown, attn_bias=added)
    return context if flash else (context, intermediates.post_softmax_attn)


class LitGPT(nn.Module):
    """litgpt.model.CausalSelfAttention: one fused tensor; causal unless a mask is given, which then stands alone."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = False,
        softcap: float | None = None,
        qk_norm: QKNorm | None = None,
        qk_norm_eps: float = 1e-6,
        rope: RopeConfig | None = None,
    ) -> None:
        super().__init__()
        from litgpt.model import CausalSelfAttention, Config

        if qk_norm == "rms_plus_one" or (out_bias and not qkv_bias):
            raise Unsupported(f"qk_norm={qk_norm!r}, qkv_bias={qkv_bias}, out_bias={out_bias}")
        if rope is not None and rope.pairing != "half":
            raise Unsupported("half pairs only")
        self.scaling = None if rope is None else _litgpt_scaling(rope.scaling)
        sizes: dict[str, Any] = {} if head_dim is None else {"head_dim": head_dim}
        self.config = c = AttentionConfig(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            causal=causal,
            softcap=softcap,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
            qk_norm_eps=qk_norm_eps,
            rope=rope,
            **sizes,
        )
        settings = Config(
            n_layer=1,
            n_head=num_heads,
            n_embd=embed_dim,
            head_size=c.head_dim,
            n_query_groups=num_kv_heads,
            bias=out_bias,
            attn_bias=qkv_bias,
            padded_vocab_size=8,
            rotary_percentage=c.rotary_dim / c.head_dim,
            attention_logit_softcapping=softcap,
            norm_class_name="RMSNorm",
            norm_eps=qk_norm_eps,
            norm_qk=qk_norm is not None,
            norm_qk_type="olmo2" if qk_norm == "rms_full" else "default",
        )
        self.attention = CausalSelfAttention(settings, 0)

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        stored = from_canonical(LAYOUTS["litgpt"], weights, self.config)
        self.attention.load_state_dict({name: torch.from_numpy(x) for name, x in stored.items()})

    def forward(self, query: Tensor, key: None = None, value: None = None, mask: Tensor | None = None) -> Tensor:
        if mask is not None and self.config.causal:
            raise Unsupported("a mask replaces its causal one")
        T = query.shape[1]
        shown = mask if mask is not None or self.config.causal else torch.ones(T, T, dtype=torch.bool)
        return self.attention(query, *self._tables(query, T), shown)

    def init_cache(self, batch_size: int, max_length: int) -> int:
        """Within the module; what is passed on is how many tokens it holds."""
        c = self.config
        self.attention.kv_cache = self.attention.build_kv_cache(batch_size, max_length, c.rotary_dim)
        self.max_length = max_length
        return 0

    def extend(self, x: Tensor, length: int) -> tuple[Tensor, int]:
        places = torch.arange(length, length + x.shape[1])
        cos, sin = (table[:, places] for table in self._tables(x, self.max_length))
        shown = torch.ones(self.max_length, self.max_length, dtype=torch.bool).tril()[places][None, None]
        return self.attention(x, cos, sin, shown, input_pos=places), length + x.shape[1]

    def _tables(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        from litgpt.model import build_rope_cache

        base = int(self.config.rope.theta) if self.config.rope else 10_000
        cos, sin = build_rope_cache(length, self.config.rotary_dim, base=base, extra_config=self.scaling)
        return cos[None].to(x.dtype), sin[None].to(x.dtype)


def _litgpt_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Its `rope_adjustments`, which hold what a scaling's class says by which fields are there."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor=factor):
            return {"factor": factor}
        case Llama3Scaling() | YarnScaling(attention_factor=None):
            fields = {name: x for name, x in asdict(scaling).items() if x is not None}
            return fields | {"original_max_seq_len": fields.pop("original_max_position_embeddings")}
    raise Unsupported(f"has no {type(scaling).__name__} with these fields")


def tinygrad(query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False) -> Array:
    """Tensor.scaled_dot_product_attention."""
    from tinygrad import Tensor as Lazy

    with refusing("no usable devices"):  # without a compiler for the processor, say
        q, k, v = (Lazy(x) for x in (query, key, value))
        shown = None if mask is None else Lazy(np.ascontiguousarray(mask))
        result = q.scaled_dot_product_attention(
            k, v, attn_mask=shown, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
        )
        return np.asarray(result.numpy())


def mlx(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """mlx.core.fast.scaled_dot_product_attention: a mask, or the word "causal"."""
    import mlx.core as mx

    if causal and mask is not None:
        raise Unsupported("a mask or causal")
    q, k, v = (mx.array(x) for x in (query, key, value))
    shown: Any = "causal" if causal else None if mask is None else mx.array(mask)
    result = mx.fast.scaled_dot_product_attention(
        q,
        k,
        v,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        mask=shown,
        sinks=None if sinks is None else mx.array(sinks),
    )
    return np.array(result)

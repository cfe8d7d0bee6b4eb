"""PyTorch's own attention. Adapters translate names and the order of axes, never conventions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor as Array
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from conformance.targets.protocol import Unsupported, refusing

# Its own switch against compiling what is not compiled: each new shape would cost a second.
flex_module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
REFUSALS = (
    "No available kernel",
    "should not be set when is_causal",
    "must match the size of tensor",
    "Expected attn_mask dtype",
)


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
        raise Unsupported("is_causal and attn_mask are not to be combined")
    with refusing(*REFUSALS):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )


def sdpa_math(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(query, key, value, mask, causal=causal, scale=scale)


def sdpa_flash(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(query, key, value, mask, causal=causal, scale=scale)


def flex(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """A boolean mask as its block_mask, a bias and a softcap as its score_mod."""
    (B, N, T, _), S = query.shape, key.shape[2]
    everywhere = None if mask is None else mask.expand(B, N, T, S)

    def visible(b: Array, h: Array, i: Array, j: Array) -> Array:
        if everywhere is not None and everywhere.dtype == torch.bool:
            return everywhere[b, h, i, j]
        return torch.ones_like(i, dtype=torch.bool)

    def score(s: Array, b: Array, h: Array, i: Array, j: Array) -> Array:
        s = s if softcap is None else softcap * torch.tanh(s / softcap)
        return s + everywhere[b, h, i, j] if everywhere is not None and everywhere.dtype != torch.bool else s

    blocks = create_block_mask(visible, B, N, T, S, device="cpu")
    return flex_attention(query, key, value, score, blocks, scale=scale, enable_gqa=query.shape[1] != key.shape[1])


class MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention with gradients enabled, as a module is called that is trained."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        kv_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        need_weights: bool = True,
    ) -> None:
        super().__init__()
        if qkv_bias != out_bias:
            raise Unsupported("one switch for all biases")
        self.inner = nn.MultiheadAttention(
            embed_dim, num_heads, dropout, qkv_bias, kdim=kv_dim, vdim=kv_dim, batch_first=True
        )
        self.causal, self.num_heads, self.need_weights = causal, num_heads, need_weights

    def load_weights(self, weights: dict[str, Any]) -> None:
        w = {name: torch.from_numpy(x.copy()) for name, x in weights.items()}
        joined = torch.cat([w[f"{p}_proj.bias"] for p in "qkv"]) if "q_proj.bias" in w else None
        state = {"out_proj.weight": w["o_proj.weight"], "out_proj.bias": w.get("o_proj.bias"), "in_proj_bias": joined}
        if self.inner.in_proj_weight is not None:
            state["in_proj_weight"] = torch.cat([w[f"{p}_proj.weight"] for p in "qkv"])
        else:
            state |= {f"{p}_proj_weight": w[f"{p}_proj.weight"] for p in "qkv"}
        self.inner.load_state_dict({name: x for name, x in state.items() if x is not None})

    def forward(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        if self.causal and mask is not None:
            raise Unsupported("is_causal is a hint about attn_mask: causal belongs in it")
        key = query if key is None else key
        value = key if value is None else value
        (B, T, _), S = query.shape, key.shape[1]
        if self.causal and mask is None:
            if T != S:
                raise Unsupported("generate_square_subsequent_mask is square")
            mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=query.dtype)
        if mask is not None and mask.ndim == 4:
            mask = mask.expand(B, self.num_heads, T, S).flatten(0, 1)
        with torch.enable_grad():
            result: tuple[Array, Array | None] = self.inner(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=self.causal,
                need_weights=self.need_weights,
                average_attn_weights=False,
            )
        return result

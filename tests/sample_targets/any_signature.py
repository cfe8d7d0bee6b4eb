"""Attentions as people have them: one input, other names, another order of axes, RoPE inside, 16 bit only."""

import math

import numpy as np
import torch
from flax import nnx
from torch import nn

import gqa_numpy


class GPT(nn.Module):
    """`forward(self, x)`: always causal, with biases, PyTorch's default."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def heads(self, x):
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)

    def rotated(self, x):
        return x

    def forward(self, x):
        q, k, v = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotated(q), self.rotated(k)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class GPTWithRope(GPT):
    """Rotates in interleaved pairs, theta 500000."""

    def rotated(self, x):
        H = x.shape[-1]
        frequencies = 500000.0 ** -(torch.arange(0, H, 2, dtype=torch.float64) / H)
        angles = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class Fused(nn.Module):
    """One tensor for query, key and value, as nn.MultiheadAttention has it."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            y.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for y in nn.functional.linear(x, self.in_proj_weight).chunk(3, -1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FusedSplitWrongly(Fused):
    """Takes [K; Q; V] for [Q; K; V]."""

    def load_state_dict(self, state, strict=True):
        q, k, v = state["in_proj_weight"].chunk(3)
        return super().load_state_dict(state | {"in_proj_weight": torch.cat([k, q, v])}, strict)


class FlaxLayer(nnx.Module):
    """`__call__(x)` of Flax NNX, with kernels (D, N, H)."""

    def __init__(self, embed_dim, num_heads, num_kv_heads, *, rngs, param_dtype):
        H = embed_dim // num_heads
        for name, heads in (("query", num_heads), ("key", num_kv_heads), ("value", num_kv_heads)):
            projection = nnx.LinearGeneral(embed_dim, (heads, H), use_bias=False, rngs=rngs, param_dtype=param_dtype)
            setattr(self, name, projection)
        self.out = nnx.LinearGeneral(
            (num_heads, H), embed_dim, axis=(-2, -1), use_bias=False, rngs=rngs, param_dtype=param_dtype
        )

    def __call__(self, x):
        import jax

        return self.out(jax.nn.dot_product_attention(self.query(x), self.key(x), self.value(x)))


def rows_of_tokens(q, k, v, causal):
    """(B, T, N, H), as FlashAttention has them; causal is required."""
    given = (x.swapaxes(1, 2) for x in (q, k, v))
    return gqa_numpy.grouped_query_attention(*given, causal=causal)[0].swapaxes(1, 2)


def rows_of_tokens_tiled(q, k, v, causal):
    k, v = (np.tile(x, (1, 1, q.shape[2] // k.shape[2], 1)) for x in (k, v))
    return rows_of_tokens(q, k, v, causal)


def half_only(query, key, value, *, causal=False, softmax_scale=None):
    """A fused kernel: float16 and H of 64 or 128, the same for values."""
    if query.dtype != torch.float16:
        raise TypeError(f"expected float16, got {query.dtype}")
    if query.shape[-1] not in (64, 128) or value.shape[-1] != query.shape[-1]:
        raise ValueError("head size must be 64 or 128")
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1).float() for x in (key, value))
    scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = query.float() @ key.mT * scale
    if causal:
        T, S = scores.shape[-2:]
        scores = scores.masked_fill(~torch.ones(T, S).tril(S - T).bool(), -math.inf)
    weights = torch.nan_to_num(scores.softmax(-1)).half().float()
    return (weights @ value).half()


def half_only_tiled(query, key, value, *, causal=False, softmax_scale=None):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat(1, groups, 1, 1) for x in (key, value))
    return half_only(query, key, value, causal=causal, softmax_scale=softmax_scale)


HALF = {"dtypes": ("float16",), "head_sizes": (64, 128), "value_size": False, "arrays": "torch"}
half_only.gqa_limits = half_only_tiled.gqa_limits = HALF


def asks_for_tables(x, cos, sin):
    return x


def not_written(query, key, value, *, causal=False):
    if causal:
        raise NotImplementedError("causal: not written yet")
    return gqa_numpy.grouped_query_attention(query, key, value)


class NeedsMore:
    def __init__(self, embed_dim, num_heads, layer_norm_factory):
        pass

    def __call__(self, x):
        return x

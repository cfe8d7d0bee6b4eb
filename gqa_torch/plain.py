"""The plain kernel: grouped-query attention as the specification reads, stage by stage. SPEC 1 to 9.

Query heads are folded into groups, (B, N, T, H) -> (B, K, G, T, H), so that keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor as Array

from gqa_torch.precision import compute_dtype, without_autocast


def plain_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    bias: Float[Array, "..."] | None,
    scale: Any,
    softcap: Any,
    sinks: Float[Array, "N"] | None,
    dropout_multiplier: Float[Array, "..."] | None,
) -> dict[str, Array]:
    """The kernel. `visible` has the axes of the weights, its first two of size 1 where they do not matter.

    What is invisible must be `zero_hidden` already.
    """
    (B, N, T, H), (_, K, S, Hv), G = query.shape, value.shape, query.shape[1] // key.shape[1]
    dtype, stages = compute_dtype(query.dtype), {}
    q, k, v = (x.to(dtype) for x in (query.reshape(B, K, G, T, H), key, value))

    with without_autocast(query.device):
        scores = torch.einsum("bkgth,bksh->bkgts", q, k).reshape(B, N, T, S) * scale
        stages["scores"] = masked = scores
        if softcap is not None:
            stages["capped"] = masked = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            limits = torch.finfo(dtype)
            masked = masked + bias.to(dtype).clamp(limits.min, limits.max)
            masked = torch.where(masked <= limits.min, limits.min, masked)  # not clamp, which passes a gradient there
        if visible is not None:
            masked = torch.where(visible, masked, -torch.inf)
        stages["masked"] = masked
        stages["weights"] = weights = softmax(masked, visible, sinks)

        kept = weights if dropout_multiplier is None else weights * dropout_multiplier.to(dtype)
        rounded = kept.to(query.dtype).to(dtype).reshape(B, K, G, T, S)
        context = torch.einsum("bkgts,bksv->bkgtv", rounded, v).reshape(B, N, T, Hv)
    stages["context"] = context.to(query.dtype)
    return stages


def softmax(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys, the sink in the denominator alone; a row that sees no key is 0 (SPEC 5, 8).

    Such a row goes in as finite numbers and comes out as 0: the softmax of nothing but -inf is NaN, its gradient too.
    """
    logits = masked
    if visible is not None:
        sees = visible.any(dim=-1, keepdim=True)
        logits = torch.where(sees, logits, 0)
    if sinks is not None:
        sink = sinks.to(masked.dtype)[:, None, None].expand(*masked.shape[:3], 1)
        logits = torch.cat([logits, sink], dim=-1)
    weights = logits.softmax(dim=-1)[..., : masked.shape[-1]]
    return weights if visible is None else torch.where(sees, weights, 0)


def zero_hidden(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"],
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """0 for keys and values that no query of their KV head may see, and for queries that see none (SPEC 5, 6).

    Masking the scores alone would let their NaN through: 0 * NaN is NaN, in the products and in every gradient.
    """
    b, n, T, S = visible.shape
    K = key.shape[1] if n > 1 else 1
    key_is_seen = visible.reshape(b, K, n // K, T, S).any(dim=(2, 3)).unsqueeze(-1)
    query_sees = visible.any(dim=-1, keepdim=True)
    return torch.where(query_sees, query, 0), torch.where(key_is_seen, key, 0), torch.where(key_is_seen, value, 0)

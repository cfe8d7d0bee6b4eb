"""The plain kernel: grouped-query attention stage by stage, in the order of the specification. SPEC 1 to 9.

Query heads are folded into groups, (B, N, T, H) -> (B, K, G, T, H), so that keys and values are never repeated.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor as Array

from gqa_spec.settings import KernelSettings
from gqa_torch.precision import compute_dtype, without_autocast


def plain_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    bias: Float[Array, "..."] | None,
    settings: KernelSettings,
    dropout_multiplier: Float[Array, "..."] | None,
) -> dict[str, Array]:
    """The kernel: every stage, from the scores to the context.

    `visible` has the axes of the weights, its first two of size 1 where they do not matter. `zero_hidden` has been
    applied to what is invisible. Of the settings, scale, softcap and sinks are used.
    """
    (B, N, T, H), (_, K, S, Hv), G = query.shape, value.shape, query.shape[1] // key.shape[1]
    dtype, stages, softcap = compute_dtype(query.dtype), {}, settings.softcap
    q, k, v = (x.to(dtype) for x in (query.reshape(B, K, G, T, H), key, value))

    with without_autocast(query.device):
        scores = torch.einsum("bkgth,bksh->bkgts", q, k).reshape(B, N, T, S) * settings.scale_for(H)
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
        stages["weights"] = weights = softmax(masked, visible, settings.sinks)

        kept = weights if dropout_multiplier is None else weights * dropout_multiplier.to(dtype)
        rounded = kept.to(query.dtype).to(dtype).reshape(B, K, G, T, S)
        context = torch.einsum("bkgts,bksv->bkgtv", rounded, v).reshape(B, N, T, Hv)
    stages["context"] = context.to(query.dtype)
    return stages


def logsumexp(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T"]:
    """The logarithm of the softmax's denominator, the sink included; -inf for a row that sees no key (SPEC 8)."""
    logits, sees = _logits(masked, visible, sinks)
    total = logits.logsumexp(dim=-1)
    return total if sees is None else torch.where(sees[..., 0], total, -torch.inf)


def softmax(
    masked: Float[Array, "B N T S"], visible: Bool[Array, "b n T S"] | None, sinks: Float[Array, "N"] | None
) -> Float[Array, "B N T S"]:
    """Softmax over the visible keys, the sink in the denominator alone; a row that sees no key is 0 (SPEC 5, 8)."""
    logits, sees = _logits(masked, visible, sinks)
    weights = logits.softmax(dim=-1)[..., : masked.shape[-1]]
    return weights if sees is None else torch.where(sees, weights, 0)


def _logits(masked: Array, visible: Array | None, sinks: Array | None) -> tuple[Array, Array | None]:
    """Scores and sink, and which rows see a key (None: all do).

    The logits of a row that sees none are replaced by 0: the softmax of nothing but -inf is NaN, and its gradient too.
    """
    logits, sees = masked, None
    if visible is not None:
        sees = visible.any(dim=-1, keepdim=True)
        sees = None if known_true(sees) else sees  # each `where` over all weights costs as much as a product
    if sees is not None:
        logits = torch.where(sees, logits, 0)
    if sinks is not None:
        sink = sinks.to(masked.dtype)[:, None, None].expand(*masked.shape[:3], 1)
        logits = torch.cat([logits, sink], dim=-1)
    return logits, sees


def known_true(x: Bool[Array, "*axes"]) -> bool:
    """Whether all are known to be True. Not read while tracing, nor from a device, which would have to finish first."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    try:
        return bool(x.all())
    except RuntimeError:  # under vmap, and without data
        return False


def zero_hidden(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"],
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """query, key and value with 0 for keys that no query of their KV head sees, and for queries that see no key.

    SPEC 5 and 6. Masking the scores alone would let a NaN through: 0 * NaN is NaN, in products and in gradients.
    """
    b, n, T, S = visible.shape
    K = key.shape[1] if n > 1 else 1
    key_is_seen = visible.reshape(b, K, n // K, T, S).any(dim=(2, 3)).unsqueeze(-1)
    query_sees = visible.any(dim=-1, keepdim=True)
    return torch.where(query_sees, query, 0), torch.where(key_is_seen, key, 0), torch.where(key_is_seen, value, 0)

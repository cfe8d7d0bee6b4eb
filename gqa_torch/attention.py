"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor as Array

from gqa_spec import checks
from gqa_spec.settings import KernelSettings
from gqa_torch import fast, masks
from gqa_torch.plain import plain_attention, zero_hidden

PACKED_QUERIES = 16  # up to here a fused kernel has rows to spare for the other heads of a group
ROW_BYTES = 2**21  # keys and values of a row that are worth a call of their own
BLOCK_QUERIES = 256
BLOCK_WEIGHTS = 2**22  # attention weights in one plain block: 16 MiB in float32


def grouped_query_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
    need_weights: bool = True,
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T S"] | None]:
    """Every query head n attends with KV head n // G.

    query, key, value: one floating dtype. mask: bool (True = may attend) or floating (added to the scores, -inf = may
    not), (T, S) or broadcastable to (B, N, T, S). causal, window (keys, the query's own counted), chunk (keys) and
    offset (positions, S - T by default; an integer or (B,)): SPEC 4. scale: H ** -0.5 by default. softcap: SPEC 2.
    sinks: one logit per query head, SPEC 8. dropout_multiplier: 0 or 1 / (1 - p), broadcastable to (B, N, T, S).

    Returns context and, with need_weights, the weights before dropout, both in the query's dtype.
    Raises ValueError for shapes and settings, TypeError for dtypes (SPEC 14).
    """
    settings: dict[str, Any] = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    if not need_weights:
        checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
        return attend(query, key, value, mask, **settings), None
    stages = attention_stages(query, key, value, mask, **settings)
    return stages["context"], stages["weights"].to(query.dtype)


def choose_path(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
    need_weights: bool = True,
) -> str:
    """How `grouped_query_attention` computes this call: the one place that decides.

    "plain": `plain_attention`. "packed", "packed by row" and "fused": the functions of these names in `fast`, all
    around PyTorch's fused attention, which knows no softcap, sinks and multiplier, and clamps no bias. "... in
    blocks": by `fast.blocked`, so that no more than one block's weights or mask exist at a time.
    """
    (B, N, T, H), (S, Hv) = query.shape, value.shape[2:]
    if need_weights or 0 in (B, T, S) or torch.compiler.is_exporting():  # one exported graph serves every length
        return "plain"
    biased = mask is not None and mask.dtype != torch.bool
    unfusable = biased or any(x is not None for x in (softcap, sinks, dropout_multiplier))
    if unfusable or Hv != H or isinstance(scale, Array):
        # torch.compile would unroll the loop over blocks, anew for every length
        return "plain" if B * N * T * S <= BLOCK_WEIGHTS or torch.compiler.is_compiling() else "plain in blocks"
    if T <= PACKED_QUERIES:
        rows_differ = (mask is not None and mask.ndim == 4 and mask.shape[0] > 1) or isinstance(offset, Array)
        row_bytes = key.shape[1] * S * (H + Hv) * query.dtype.itemsize
        by_row = B > 1 and rows_differ and row_bytes >= ROW_BYTES and not torch.compiler.is_compiling()
        return "packed by row" if by_row else "packed"
    square = T == S and (offset is None or (checks.is_integer(offset) and offset == 0))
    alone = mask is None and window is None and chunk is None and square
    return "fused" if alone or not hides(T, S, mask, causal, window, chunk, offset) else "fused in blocks"


def hides(
    T: int, S: int, mask: Array | None, causal: bool, window: int | None, chunk: int | None, offset: masks.Offset
) -> bool:
    """Whether there may be a key that some query does not see."""
    if mask is not None or window is not None or chunk is not None:
        return True
    start: Any = S - T if offset is None else offset
    return causal and (isinstance(start, Array) or bool(start < S - 1))


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    *,
    causal: bool,
    window: int | None,
    chunk: int | None,
    offset: masks.Offset,
    scale: float | None,
    softcap: float | None,
    sinks: Float[Array, "N"] | None,
    dropout_multiplier: Array | None,
    clean: bool = False,
) -> Float[Array, "B N T Hv"]:
    """The context alone, by the path that `choose_path` names. clean: no key or value is inf or NaN.

    Static positions hide keys by slicing: these stay unread. What a mask hides gets a weight of 0, which silences it
    unless it is inf or NaN. Where one may look, a finite context proves that it was not; else it is read as 0 (SPEC 6).
    """
    T, S, rule = query.shape[2], key.shape[2], (causal, window, chunk)
    path = choose_path(
        query, key, value, mask, causal=causal, window=window, chunk=chunk, offset=offset, scale=scale,
        softcap=softcap, sinks=sinks, dropout_multiplier=dropout_multiplier, need_weights=False,
    )  # fmt: skip
    hidden = hides(T, S, mask, *rule, offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if path == "packed" and not hidden:
        return fast.packed(query, key, value, None, scale)
    if path == "fused":
        return fast.fused(query, key, value, None, scale, causal=hidden)
    rows = block_queries(path, query, key)

    def kernel(q: Array, k: Array, v: Array, visible: Array | None, bias: Array | None, multiplier: Any) -> Array:
        if path == "packed":
            return fast.packed(q, k, v, visible, scale)
        if path == "packed by row":
            return fast.packed_by_row(q, k, v, visible, scale)
        if path == "fused in blocks":
            return fast.fused(q, k, v, visible, scale)
        return plain_attention(q, k, v, visible, bias, scale, softcap, sinks, multiplier)["context"]

    if rows >= T and not hidden:
        return kernel(query, key, value, None, None, dropout_multiplier)
    if not clean and (mask is not None or isinstance(offset, Array) or None not in rule[1:]):
        if may_look(query, key, value, mask, sinks, dropout_multiplier):
            context = fast.blocked(kernel, query, key, value, mask, dropout_multiplier, rule, offset, rows)
            if is_finite(context):
                return context
        key, value = fast.scrubbed(query, key, value, mask, rule, offset, rows)
    return fast.blocked(kernel, query, key, value, mask, dropout_multiplier, rule, offset, rows)


def block_queries(path: str, query: Float[Array, "B N T H"], key: Float[Array, "B K S H"]) -> int:
    """How many queries one block has: a fused kernel wants many, the plain one has room for so many weights."""
    B, N, T, _ = query.shape
    if path == "plain in blocks":
        return max(BLOCK_WEIGHTS // (B * N * key.shape[2]), 1)
    return BLOCK_QUERIES if path == "fused in blocks" and not torch.compiler.is_compiling() else T


def may_look(*arrays: Array | None) -> bool:
    """Whether the path may depend on values: not while tracing, and not where gradients would meet the inf or NaN."""
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays)
    return not (needs_grad or torch.compiler.is_compiling())


def is_finite(x: Array) -> bool:
    """Whether x surely holds neither inf nor NaN: under vmap, and without data, nobody can say."""
    try:
        return bool(x.isfinite().all())
    except RuntimeError:
        return False


def attention_stages(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
) -> dict[str, Array]:
    """The plain computation, stage by stage: scores, capped (with a softcap), masked (-inf where invisible) and
    weights, all (B, N, T, S) in the compute dtype, then context (B, N, T, Hv) in the query's dtype.

    Arguments and errors as for `grouped_query_attention`.
    """
    settings: dict[str, Any] = {
        "causal": causal, "window": window, "chunk": chunk, "offset": offset, "scale": scale, "softcap": softcap,
        "sinks": sinks, "dropout_multiplier": dropout_multiplier,
    }  # fmt: skip
    checks.attention(query, key, value, mask, Array, KernelSettings(**settings))
    visible, bias = masks.split(mask)
    T, S = query.shape[2], key.shape[2]
    visible = masks.visible_keys(T, S, visible, causal, window, chunk, offset, device=query.device)
    if visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return plain_attention(query, key, value, visible, bias, scale, softcap, sinks, dropout_multiplier)

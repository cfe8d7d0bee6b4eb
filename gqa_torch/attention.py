"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): its two entries, and which path a call takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor as Array

from gqa_spec import checks
from gqa_spec.settings import KernelSettings
from gqa_torch import fast, masks
from gqa_torch.derivatives import beyond_gradients, twice_differentiable
from gqa_torch.plain import logsumexp, plain_attention, zero_hidden

PACKED_QUERIES = 16  # with so few queries a fused kernel has rows to spare for the other heads of a group
ROW_BYTES = 2**21  # from so many bytes of keys and values on, a row of the batch is worth a kernel call of its own
BLOCK_QUERIES = 256
CACHED_WEIGHTS = 2**20  # attention weights in one plain block: 4 MiB in float32, which a processor's caches hold
BLOCK_ROWS, BLOCK_WEIGHTS = 16, 2**22  # more only for so many queries, since products of fewer rows are slow: 16 MiB


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
    """Attend from each query head n to KV head n // G, G = N / K.

    Args:
        query: (B, N, T, H), of the same floating dtype as key and value.
        key: (B, K, S, H); K divides N.
        value: (B, K, S, Hv).
        mask: bool (True = may attend) or floating (added to the scores, -inf = may not), (T, S) or broadcastable to
            (B, N, T, S).
        causal: Query i sees key j only if j <= i + offset.
        window: Query i sees only keys with |i + offset - j| < window.
        chunk: Query i sees only keys of the same chunk, (i + offset) // chunk == j // chunk.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        scale: Factor on query . key; H ** -0.5 by default.
        softcap: Scores become softcap * tanh(scores / softcap).
        sinks: One logit for each query head, (N,), in the softmax's denominator only.
        dropout_multiplier: 0 or 1 / (1 - p) for each weight, broadcastable to (B, N, T, S).
        need_weights: Whether to return the weights. Without them, a faster kernel is used; at T = 1024 it takes about
            a tenth of the time.

    Returns:
        The context (B, N, T, Hv) and the weights before dropout (B, N, T, S), or None for these, both in the query's
        dtype.

    Raises:
        ValueError: For a wrong shape or setting (SPEC 14).
        TypeError: For a wrong type or dtype.
    """
    settings = KernelSettings(
        causal=causal,
        window=window,
        chunk=chunk,
        offset=offset,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )
    return attention(query, key, value, mask, settings, need_weights=need_weights)


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
    """Compute attention plainly and return every stage.

    Args:
        query, key, value, mask, causal, window, chunk, offset, scale, softcap, sinks, dropout_multiplier: As for
            `grouped_query_attention`.

    Returns:
        scores, capped (with a softcap), masked (-inf where invisible), weights, all (B, N, T, S), and logsumexp
        (B, N, T), in the compute dtype, then context (B, N, T, Hv) in the query's dtype.

    Raises:
        ValueError: For a wrong shape or setting (SPEC 14).
        TypeError: For a wrong type or dtype.
    """
    settings = KernelSettings(
        causal=causal,
        window=window,
        chunk=chunk,
        offset=offset,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )
    return stages_of(query, key, value, mask, settings)


def attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    need_weights: bool,
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T S"] | None]:
    """`grouped_query_attention`, its settings in one object."""
    if not need_weights:
        checks.attention(query, key, value, mask, Array, settings)
        return attend(query, key, value, mask, settings), None
    stages = _plain_stages(query, key, value, mask, settings)[0]
    return stages["context"], stages["weights"].to(query.dtype)


def stages_of(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> dict[str, Array]:
    """`attention_stages`, its settings in one object."""
    stages, visible = _plain_stages(query, key, value, mask, settings)
    context = stages.pop("context")
    return stages | {"logsumexp": logsumexp(stages["masked"], visible, settings.sinks), "context": context}


def _plain_stages(
    query: Array, key: Array, value: Array, mask: Array | None, settings: KernelSettings
) -> tuple[dict[str, Array], Array | None]:
    """The stages of the plain kernel, and which keys are visible."""
    checks.attention(query, key, value, mask, Array, settings)
    visible, bias = masks.split(mask)
    T, S = query.shape[2], key.shape[2]
    visible = masks.visible_keys(T, S, visible, settings, settings.offset, device=query.device)
    if visible is not None:
        query, key, value = zero_hidden(query, key, value, visible)
    return plain_attention(query, key, value, visible, bias, settings, settings.dropout_multiplier), visible


# query, key, value, visible, bias, dropout_multiplier -> context
Kernel = Callable[[Array, Array, Array, Array | None, Array | None, Array | None], Array]


@dataclass(frozen=True, eq=False)
class Path:
    """How one call is computed: by which kernel, and how many queries at a time.

    masked: whether the kernel needs a mask, since some key may be invisible to some query.
    """

    name: str
    kernel: Kernel
    block: int
    masked: bool


def choose_path(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> Path:
    """The path of a call that needs no weights: the one place that decides.

    `packed`, `packed by row` and `fused` are built on PyTorch's fused attention, which has no softcap, sinks and
    multiplier, and clamps no bias. Blocks bound the memory: one block's weights or mask exist at a time. `onnx` becomes
    one node of an exported graph.
    """
    (B, N, T, H), (S, Hv) = query.shape, value.shape[2:]
    hides = may_hide(T, S, mask, settings)
    compiling = torch.compiler.is_compiling()  # it would unroll the loop over blocks, anew for every length
    exporting = torch.compiler.is_exporting()
    if exporting and Hv == H and torch.onnx.is_in_onnx_export() and onnx_expressible(mask, settings):
        return Path("onnx", fused_kernel(fast.onnx_operator, settings, softcap=settings.softcap), T, hides)
    if 0 in (B, T, S) or exporting:  # one exported graph is for every length
        return Path("plain", plain_kernel(settings), T, hides)
    if not fusable(query, value, mask, settings) or beyond_gradients(query, key, value):
        return plain_path(B * N * S, T, settings, hides, whole=compiling)
    if T <= PACKED_QUERIES:
        rows_differ = (mask is not None and mask.ndim == 4 and mask.shape[0] > 1) or isinstance(settings.offset, Array)
        row_bytes = key.shape[1] * S * (H + Hv) * query.dtype.itemsize
        if B > 1 and rows_differ and row_bytes >= ROW_BYTES and not compiling:
            return Path("packed by row", fused_kernel(fast.packed_by_row, settings), T, hides)
        return Path("packed", fused_kernel(fast.packed, settings), T, hides)
    if not hides:
        return Path("fused", fused_kernel(fast.fused, settings), T, masked=False)
    if settings.only_causal and mask is None and square(T, S, settings.offset):
        return Path("fused", fused_kernel(fast.fused, settings, causal=True), T, masked=False)
    return Path("fused in blocks", fused_kernel(fast.fused, settings), T if compiling else BLOCK_QUERIES, hides)


def plain_path(weights: int, T: int, settings: KernelSettings, hides: bool, *, whole: bool = False) -> Path:
    """The plain kernel, whole where the weights of all queries are few. weights: of one query."""
    rows = max(CACHED_WEIGHTS // weights, min(BLOCK_ROWS, BLOCK_WEIGHTS // weights), 1)
    if rows >= T or whole:
        return Path("plain", plain_kernel(settings), T, hides)
    return Path("plain in blocks", plain_kernel(settings), rows, hides)


def fusable(query: Array, value: Array, mask: Array | None, settings: KernelSettings) -> bool:
    """Whether PyTorch's fused attention has everything that the call needs."""
    biased = mask is not None and mask.dtype != torch.bool
    extras = (settings.softcap, settings.sinks, settings.dropout_multiplier)
    same_size = query.shape[3] == value.shape[3]
    return same_size and not biased and not isinstance(settings.scale, Array) and all(x is None for x in extras)


def onnx_expressible(mask: Array | None, settings: KernelSettings) -> bool:
    """Whether ONNX's operator Attention has everything that the call needs; it does not clamp a bias as SPEC 3 does.

    PyTorch's wrapper of it takes a value head size other than H for H (torch 2.13): `choose_path` keeps it from that.
    """
    numbers = not isinstance(settings.scale, Array) and not isinstance(settings.softcap, Array)
    biased = mask is not None and mask.dtype != torch.bool
    return numbers and not biased and settings.sinks is None and settings.dropout_multiplier is None


def may_hide(T: int, S: int, mask: Array | None, settings: KernelSettings) -> bool:
    """Whether there may be a key that some query does not see."""
    if mask is not None or settings.window is not None or settings.chunk is not None:
        return True
    start = S - T if settings.offset is None else settings.offset
    return settings.causal and bool(isinstance(start, Array) or start < S - 1)


def square(T: int, S: int, offset: masks.Offset) -> bool:
    """Whether query i and key i have the same position, for each i."""
    return T == S and not isinstance(offset, Array) and offset in (None, 0)


def plain_kernel(settings: KernelSettings) -> Kernel:
    def kernel(
        query: Array, key: Array, value: Array, visible: Array | None, bias: Array | None, multiplier: Array | None
    ) -> Array:
        return plain_attention(query, key, value, visible, bias, settings, multiplier)["context"]

    return kernel


def fused_kernel(function: Callable[..., Array], settings: KernelSettings, **options: Any) -> Kernel:
    """`choose_path` gives it no call with a bias or a multiplier."""

    def fused(query: Array, key: Array, value: Array, visible: Array | None) -> Array:
        return function(query, key, value, visible, settings.scale_for(query.shape[-1]), **options)

    def plain(query: Array, key: Array, value: Array, visible: Array | None) -> Array:
        if visible is None and options.get("causal"):
            visible = masks.visible_keys(query.shape[2], key.shape[2], None, settings, 0, device=query.device)
        return plain_attention(query, key, value, visible, None, settings, None)["context"]

    def kernel(
        query: Array, key: Array, value: Array, visible: Array | None, bias: Array | None, multiplier: Array | None
    ) -> Array:
        return twice_differentiable(fused, plain, query, key, value, visible)

    return kernel


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    *,
    finite_keys: bool = False,
) -> Float[Array, "B N T Hv"]:
    """The context alone, by the path that `choose_path` returns.

    finite_keys: the caller has made sure that no key or value is inf or NaN.

    Keys that static positions hide are sliced off and never read. A key that a mask hides gets the weight 0, and so has
    no effect unless it is inf or NaN. If the result is finite, there was none; else the hidden keys and values are set
    to 0 and the context is computed again (SPEC 6). Where values cannot be read, they are set to 0 at once.
    """
    path = choose_path(query, key, value, mask, settings)
    if not path.masked and path.block >= query.shape[2]:
        return path.kernel(query, key, value, None, None, settings.dropout_multiplier)
    sliced = mask is None and not isinstance(settings.offset, Array) and not settings.window_and_chunk
    if not (finite_keys or sliced):
        if values_can_be_read(query, key, value, mask, settings.sinks, settings.dropout_multiplier):
            context = fast.blocked(path.kernel, query, key, value, mask, settings, path.block)
            if is_finite(context):
                return context
        key, value = fast.zero_hidden_keys(query, key, value, mask, settings, path.block)
    return fast.blocked(path.kernel, query, key, value, mask, settings, path.block)


def values_can_be_read(*arrays: Array | None) -> bool:
    """Whether the path may depend on values: not while tracing, and not where gradients would meet the inf or NaN."""
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays)
    return not (needs_grad or torch.compiler.is_compiling())


def is_finite(x: Array) -> bool:
    """Whether x is known to hold neither inf nor NaN. Under vmap, and without data, values cannot be read."""
    try:
        return bool(x.isfinite().all())
    except RuntimeError:
        return False


def merge(
    contexts: Sequence[Float[Array, "B N T Hv"]], logsumexps: Sequence[Float[Array, "B N T"]]
) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T"]]:
    """Merge the results of attention to disjoint sets of keys, with gradients (SPEC 8).

    Args:
        contexts: The context of each part, (B, N, T, Hv).
        logsumexps: The logsumexp of each part, (B, N, T); -inf where a query sees no key. Sinks belong into one part.

    Returns:
        Context and logsumexp of attention to all keys.

    Raises:
        ValueError: For a wrong shape or number of parts.
        TypeError: For a wrong type or dtype.
    """
    checks.parts(contexts, logsumexps, Array)
    parts = torch.stack(list(logsumexps))
    sees = (parts > -torch.inf).any(dim=0)
    total = torch.where(sees, parts, 0).logsumexp(dim=0)  # of nothing but -inf, its gradient would be NaN
    shares = (parts - total).exp()[..., None]
    context = (shares * torch.stack(list(contexts)).to(parts.dtype)).sum(dim=0)
    return context.to(contexts[0].dtype), torch.where(sees, total, -torch.inf)

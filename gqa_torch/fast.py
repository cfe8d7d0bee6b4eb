"""The fast paths, each one function, for calls that need no weights. `gqa_torch.attention.choose_path` chooses.

All are pure and take arguments that have been checked. They read keys and values as they are: what is invisible must be
finite, so that its weight of 0 removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor as Array
from torch.nn import functional as F

from gqa_spec.settings import KernelSettings
from gqa_torch import masks
from gqa_torch.plain import known_true
from gqa_torch.precision import without_autocast

NOTHING_HIDDEN = KernelSettings()


def packed(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    scale: float,
) -> Float[Array, "B N T Hv"]:
    """A few queries: the heads of a group become rows of one matrix, so that each key and value is read once.

    Where there are fewer KV heads than cores, a group is cut into `parts`, one for each core.
    """
    (B, N, T, H), K = query.shape, key.shape[1]
    parts = _parts(B * K, N // K, cores(query.device))
    heads = K * parts
    rows = N // heads * T
    sees, allowed = _allowed(visible)
    if allowed is not None:
        b, n, _, S = allowed.shape
        if n > 1:
            allowed = allowed.expand(b, N, T, S).reshape(b, heads, rows, S)
        elif T > 1:
            allowed = allowed.expand(b, N // heads, T, S).reshape(b, 1, rows, S)
    with without_autocast(query.device):
        folded = query.reshape(B, heads, rows, H)
        context = F.scaled_dot_product_attention(folded, key, value, allowed, scale=scale, enable_gqa=parts > 1)
    context = context.reshape(B, N, T, value.shape[3])
    return context if sees is None else torch.where(sees, context, 0)


def packed_by_row(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    scale: float,
) -> Float[Array, "B N T Hv"]:
    """Rows of different lengths: `packed` row after row, each against the slice of keys that the row sees."""
    if visible is None or visible.shape[0] == 1 or visible.shape[3] == 0:
        return packed(query, key, value, visible, scale)
    ranges = _visible_ranges(visible)
    if ranges is None or sum(end - first for first, end in ranges) > 0.8 * len(ranges) * key.shape[2]:
        return packed(query, key, value, visible, scale)  # rows that differ little are faster together
    contexts = []
    for row, (first, end) in enumerate(ranges):
        rows, seen = slice(row, row + 1), visible[row : row + 1, :, :, first:end]
        k, v = key[rows, :, first:end], value[rows, :, first:end]
        contexts.append(packed(query[rows], k, v, None if bool(seen.all()) else seen, scale))
    return torch.cat(contexts)


def _visible_ranges(visible: Bool[Array, "B n T S"]) -> list[list[int]] | None:
    """The range of keys that each row sees; None where values cannot be read, as under vmap or on the meta device."""
    seen = visible.any(dim=2).any(dim=1).int()
    S = seen.shape[1]
    end = torch.where(seen.any(dim=1), S - seen.flip(1).argmax(dim=1), 0)
    try:
        return torch.stack([seen.argmax(dim=1), end], dim=1).tolist()
    except RuntimeError:
        return None


def _allowed(visible: Array | None) -> tuple[Array | None, Array | None]:
    """Which rows see a key (None: all do), and a mask that lets the others see all: a softmax of nothing is NaN."""
    if visible is None:
        return None, None
    sees = visible.any(dim=-1, keepdim=True)
    return (None, visible) if known_true(sees) else (sees, visible | ~sees)


def _parts(heads: int, group_size: int, cores: int) -> int:
    """The fewest equal parts of a group that give every core something to do, with `heads` groups."""
    return next((n for n in range(1, group_size + 1) if group_size % n == 0 and heads * n >= cores), group_size)


def cores(device: torch.device) -> int:
    """How many heads can be computed at a time. A GPU divides one head among its cores."""
    return torch.get_num_threads() if device.type == "cpu" else 1


# what torch.compiler.assume_constant_result does, which loads torch._dynamo first: 0.9 s of the import
vars(cores)["_dynamo_marked_constant"] = True


def fused(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    scale: float,
    *,
    causal: bool = False,
) -> Float[Array, "B N T Hv"]:
    """Many queries: PyTorch's own fused attention. Its `is_causal` is aligned top-left: for T = S only."""
    sees, allowed = _allowed(visible)
    with without_autocast(query.device):
        context = F.scaled_dot_product_attention(
            query, key, value, allowed, is_causal=causal, scale=scale, enable_gqa=True
        )
    return context if sees is None else torch.where(sees, context, 0)


def onnx_operator(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    scale: float,
    *,
    softcap: float | None,
) -> Float[Array, "B N T Hv"]:
    """ONNX's operator Attention, opset 23: groups are contiguous and a row without a visible key is 0, as here."""
    context, *_ = torch.onnx.ops.attention(query, key, value, visible, scale=scale, softcap=softcap or 0.0)
    return context


def blocked(
    kernel: Callable[..., Array],
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    rows: int,
) -> Float[Array, "B N T Hv"]:
    """Block after block of `rows` queries, each against the slice of keys outside which it sees none.

    No mask for all queries is ever made.
    """
    contexts = []
    for block in _blocks(query, key, mask, settings, rows):
        q, k, v = _sliced(query, block.queries), _sliced(key, block.keys), _sliced(value, block.keys)
        if block.visible is not None:  # a query that sees nothing would send its NaN into gradients
            sees = block.visible.any(dim=-1, keepdim=True)
            q = q if known_true(sees) else torch.where(sees, q, 0)
        multiplier = _part(settings.dropout_multiplier, block.queries, block.keys)
        contexts.append(kernel(q, k, v, block.visible, block.bias, multiplier))
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts[::-1], dim=2)


def zero_hidden_keys(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
    rows: int,
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """key and value with 0 for keys that no query of their KV head sees (SPEC 6), found block after block."""
    K, S, seen = key.shape[1], key.shape[2], []
    for block in _blocks(query, key, mask, settings, rows):
        if block.visible is None:
            return key, value
        b, n, t, s = block.visible.shape
        shared = K if n > 1 else 1
        key_is_seen = block.visible.reshape(b, shared, n // shared, t, s).any(dim=(2, 3))
        seen.append(F.pad(key_is_seen, (block.keys.start, S - block.keys.stop)))
    seen_by_any = reduce(torch.logical_or, seen).unsqueeze(-1)
    return torch.where(seen_by_any, key, 0), torch.where(seen_by_any, value, 0)


@dataclass(frozen=True, eq=False)
class Block:
    """Some queries, the slice of keys that they may see, which of these they see (None: all), and their bias."""

    queries: slice
    keys: slice
    visible: Array | None
    bias: Array | None


def _blocks(query: Array, key: Array, mask: Array | None, settings: KernelSettings, rows: int) -> Iterator[Block]:
    """The blocks of `rows` queries, from the last on."""
    T, S = query.shape[2], key.shape[2]
    offset: Any = S - T if settings.offset is None else settings.offset
    offset = offset if isinstance(offset, Array) else int(offset)
    # The last block may see most keys. It comes first, so that smaller ones fit into the memory that it frees. A single
    # block does without range: torch.compile would fix T to its value.
    for start in [0] if rows >= T else reversed(range(0, T, rows)):
        queries = slice(start, min(start + rows, T))
        count, position = queries.stop - start, offset + start
        keys = slice(*masks.key_range(count, S, settings, position))
        visible, bias = masks.split(_part(mask, queries, keys))
        # the slice of a single query holds no key that causal, window or chunk hides
        sliced = count == 1 and not isinstance(position, Array) and not settings.window_and_chunk
        visible = masks.visible_keys(
            count,
            keys.stop - keys.start,
            visible,
            NOTHING_HIDDEN if sliced else settings,
            position - keys.start,
            device=query.device,
        )
        yield Block(queries, keys, visible, bias)


def _sliced(x: Array, part: slice) -> Array:
    return x if part.stop - part.start == x.shape[2] else x[:, :, part]


def _part(x: Array | None, queries: slice, keys: slice) -> Array | None:
    """The part of a mask or multiplier for these queries and keys; an axis of size 1 is for all."""
    if x is None:
        return None
    x = x[..., queries, :] if x.shape[-2] != 1 else x
    return x[..., keys] if x.shape[-1] != 1 else x

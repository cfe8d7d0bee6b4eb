"""The fast paths, each one function, for calls that ask for no weights. `gqa_torch.attention.choose_path` chooses.

All are pure, work on arguments already validated, and read keys and values as they are: what is invisible must be
finite, so that a weight of 0 silences it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor as Array
from torch.nn import functional as F

from gqa_torch import masks
from gqa_torch.precision import without_autocast

Block = tuple[slice, slice, Array | None, Array | None]


def packed(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    visible: Bool[Array, "b n T S"] | None,
    scale: float,
) -> Float[Array, "B N T Hv"]:
    """A few queries: the heads of a group become rows of one matrix, so that each key and value is read once.

    Where there are fewer KV heads than cores, a group is cut into `parts`, so that every core has one to work on.
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
    ranges = None if visible is None or visible.shape[0] == 1 or visible.shape[3] == 0 else _visible_ranges(visible)
    if (
        visible is None
        or ranges is None
        or sum(end - first for first, end in ranges) > 0.8 * len(ranges) * key.shape[2]
    ):
        return packed(query, key, value, visible, scale)  # rows that differ little are faster together
    contexts = []
    for row, (first, end) in enumerate(ranges):
        rows, seen = slice(row, row + 1), visible[row : row + 1, :, :, first:end]
        k, v = key[rows, :, first:end], value[rows, :, first:end]
        contexts.append(packed(query[rows], k, v, None if bool(seen.all()) else seen, scale))
    return torch.cat(contexts)


def _visible_ranges(visible: Bool[Array, "B n T S"]) -> list[list[int]] | None:
    """From where to where each row sees keys; None where values cannot be read, as under vmap or on the meta device."""
    seen = visible.any(dim=2).any(dim=1).int()
    S = seen.shape[1]
    end = torch.where(seen.any(dim=1), S - seen.flip(1).argmax(dim=1), 0)
    try:
        return torch.stack([seen.argmax(dim=1), end], dim=1).tolist()
    except RuntimeError:
        return None


def _allowed(visible: Array | None) -> tuple[Array | None, Array | None]:
    """Which rows see a key, and a mask by which those that see none read them all: a softmax of nothing is NaN."""
    if visible is None:
        return None, None
    sees = visible.any(dim=-1, keepdim=True)
    return sees, visible | ~sees


def _parts(heads: int, group_size: int, cores: int) -> int:
    """The fewest equal parts of a group with which `heads` groups occupy every core."""
    return next((n for n in range(1, group_size + 1) if group_size % n == 0 and heads * n >= cores), group_size)


@torch.compiler.assume_constant_result
def cores(device: torch.device) -> int:
    """How many workers want a head of their own: a GPU has ways to share one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


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


def blocked(
    kernel: Callable[..., Array],
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    dropout_multiplier: Array | None,
    rule: tuple[bool, int | None, int | None],
    offset: masks.Offset,
    rows: int,
) -> Float[Array, "B N T Hv"]:
    """Block after block of `rows` queries, each against no more than the slice of keys that it may see at all.

    No mask is ever made for the whole pass. rule: causal, window and chunk.
    """
    contexts = []
    for queries, keys, visible, bias in _blocks(query, key, mask, rule, offset, rows):
        q, k, v = _along(query, queries), _along(key, keys), _along(value, keys)
        if visible is not None:  # a query that sees nothing would send its NaN into gradients
            q = torch.where(visible.any(dim=-1, keepdim=True), q, 0)
        contexts.append(kernel(q, k, v, visible, bias, _part(dropout_multiplier, queries, keys)))
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts[::-1], dim=2)


def scrubbed(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    rule: tuple[bool, int | None, int | None],
    offset: masks.Offset,
    rows: int,
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S Hv"]]:
    """0 for keys and values that no query of their KV head may see (SPEC 6), found out block after block."""
    K, S, seen = key.shape[1], key.shape[2], []
    for _, keys, visible, _ in _blocks(query, key, mask, rule, offset, rows):
        if visible is None:
            return key, value
        b, n, t, s = visible.shape
        shared = K if n > 1 else 1
        key_is_seen = visible.reshape(b, shared, n // shared, t, s).any(dim=(2, 3))
        seen.append(F.pad(key_is_seen, (keys.start, S - keys.stop)))
    anywhere = reduce(torch.logical_or, seen).unsqueeze(-1)
    return torch.where(anywhere, key, 0), torch.where(anywhere, value, 0)


def _blocks(
    query: Array, key: Array, mask: Array | None, rule: tuple[bool, int | None, int | None], offset: Any, rows: int
) -> Iterator[Block]:
    """Which queries, which keys, what those see of these (None: all), and the bias on the scores; from the last on."""
    T, S = query.shape[2], key.shape[2]
    offset = S - T if offset is None else offset if isinstance(offset, Array) else int(offset)
    # the last block, which may see most, comes first: smaller ones fit into the memory that it leaves. Not range for a
    # single block: torch.compile would fix T to its value.
    for start in [0] if rows >= T else reversed(range(0, T, rows)):
        queries = slice(start, min(start + rows, T))
        count, position = queries.stop - start, offset + start
        keys = slice(*masks.key_range(count, S, *rule, position))
        visible, bias = masks.split(_part(mask, queries, keys))
        # one query sees the whole of its slice, so the rule has nothing left to hide
        settled = count == 1 and not isinstance(position, Array) and None in rule[1:]
        hidden_by = (False, None, None) if settled else rule
        visible = masks.visible_keys(
            count, keys.stop - keys.start, visible, *hidden_by, position - keys.start, device=query.device
        )
        yield queries, keys, visible, bias


def _along(x: Array, part: slice) -> Array:
    return x if part.stop - part.start == x.shape[2] else x[:, :, part]


def _part(x: Array | None, queries: slice, keys: slice) -> Array | None:
    """The part of a mask or multiplier that belongs to these queries and keys; axes of size 1 serve all."""
    if x is None:
        return None
    x = x[..., queries, :] if x.shape[-2] != 1 else x
    return x[..., keys] if x.shape[-1] != 1 else x

"""Masks: which keys a query may see (True), or what is added to its scores (floating, -inf = may not). SPEC 3 and 4.

Query i has position i + offset, key j position j; offset defaults to S - T, so that the last query sees the last key. A
mask is made on `device`; by default on the device of an offset given as a tensor, else on PyTorch's default.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor as Array

from gqa_spec import checks
from gqa_spec.settings import KernelSettings

Offset = int | np.integer[Any] | Integer[Array, "..."] | None
Device = torch.device | str | None


def query_positions(T: int, S: int, offset: Offset = None, *, device: Device = None) -> Integer[Array, "..."]:
    """The position of each query.

    Args:
        T: The number of queries.
        S: The number of keys.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        device: Where to make it.

    Returns:
        i + offset: (T,), or (B, T) for an offset of each row.
    """
    start: Any = S - T if offset is None else offset
    if isinstance(start, Array):
        start = start.to(device or start.device, torch.int64)[..., None]
        device = start.device
    return torch.arange(T, device=device) + start


def relative_positions(T: int, S: int, offset: Offset = None, *, device: Device = None) -> Integer[Array, "..."]:
    """The distance from key j to query i, i + offset - j: (T, S), or (B, 1, T, S) for per-row offsets (B,)."""
    start = query_positions(T, S, offset, device=device)[..., None]
    distance = start - torch.arange(S, device=start.device)
    return distance[:, None] if distance.ndim == 3 else distance


def causal(T: int, S: int, offset: Offset = None, *, device: Device = None) -> Bool[Array, "..."]:
    """Keys up to the query's own position.

    Args:
        T: The number of queries.
        S: The number of keys.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        device: Where to make the mask.

    Returns:
        True where j <= i + offset: (T, S), or (B, 1, T, S) for an offset of each row.
    """
    return relative_positions(T, S, offset, device=device) >= 0


def window(T: int, S: int, window: int, offset: Offset = None, *, device: Device = None) -> Bool[Array, "..."]:
    """A band of keys around the query's own position.

    Args:
        T: The number of queries.
        S: The number of keys.
        window: With `causal`, the number of keys that are left, the query's own position counted.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        device: Where to make the mask.

    Returns:
        True where |i + offset - j| < window: (T, S), or (B, 1, T, S) for an offset of each row.

    Raises:
        ValueError: For a window below 1.
        TypeError: For a window that is no integer.
    """
    checks.integer("window", window, at_least=1)
    return relative_positions(T, S, offset, device=device).abs() < window


def chunk(T: int, S: int, chunk: int, offset: Offset = None, *, device: Device = None) -> Bool[Array, "..."]:
    """Keys of the query's own chunk (Llama 4).

    Args:
        T: The number of queries.
        S: The number of keys.
        chunk: The number of positions in a chunk. The division rounds down, so that negative positions have chunks too.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        device: Where to make the mask.

    Returns:
        True where (i + offset) // chunk == j // chunk: (T, S), or (B, 1, T, S) for an offset of each row.

    Raises:
        ValueError: For a chunk below 1.
        TypeError: For a chunk that is no integer.
    """
    checks.integer("chunk", chunk, at_least=1)
    distance = relative_positions(T, S, offset, device=device)
    key_position = torch.arange(S, device=distance.device)
    return (distance + key_position) // chunk == key_position // chunk


def padding(lengths: Integer[Array, "B"], S: int) -> Bool[Array, "B 1 1 S"]:
    """The first lengths[b] keys of row b.

    Args:
        lengths: The number of real keys in each row, (B,).
        S: The number of keys.

    Returns:
        (B, 1, 1, S).
    """
    return (torch.arange(S, device=lengths.device) < lengths[:, None])[:, None, None, :]


def segments(query_ids: Integer[Array, "B T"], key_ids: Integer[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Keys of the query's own segment: packed sequences that must not see each other.

    Args:
        query_ids: The segment of each query, (B, T).
        key_ids: The segment of each key, (B, S).

    Returns:
        (B, 1, T, S).
    """
    return (query_ids[:, :, None] == key_ids[:, None, :])[:, None]


def alibi_slopes(num_heads: int, *, device: Device = None) -> Float[Array, "N"]:
    """The published slopes (Press et al. 2022, arXiv 2108.12409): 2^(-8 n / N), and their rule for other N."""
    checks.integer("num_heads", num_heads, symbol="N", at_least=1)
    power = 1 << (num_heads.bit_length() - 1)
    base = [2.0 ** (-8 * (n + 1) / power) for n in range(power)]
    between = [2.0 ** (-8 * (n + 1) / (2 * power)) for n in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(base + between, dtype=torch.float64, device=device)


def alibi(num_heads: int, T: int, S: int, offset: Offset = None, *, device: Device = None) -> Float[Array, "..."]:
    """The bias of ALiBi (Press et al. 2022, arXiv 2108.12409), by the distance of a key.

    Args:
        num_heads: N, the number of query heads; any, with the published rule for those that are no power of two.
        T: The number of queries.
        S: The number of keys.
        offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
        device: Where to make the mask.

    Returns:
        -slope * |i + offset - j| in float32: (1, N, T, S), or (B, N, T, S) for an offset of each row.
    """
    distance = relative_positions(T, S, offset, device=device).abs()
    distance = distance if distance.ndim == 4 else distance[None, None]
    return (-alibi_slopes(num_heads, device=distance.device)[:, None, None] * distance).float()


def combine(*masks: Array) -> Array:
    """All masks at once.

    Args:
        *masks: Boolean or floating masks that broadcast to each other.

    Returns:
        A boolean mask where all are: True where all are True. Else the sum, with -inf for False; finite sums stay
        finite.
    """
    combined = masks[0]
    for mask in masks[1:]:
        combined = _both(combined, mask)
    return combined


def _both(a: Array, b: Array) -> Array:
    if a.dtype == torch.bool and b.dtype == torch.bool:
        return a & b
    a, b = (_as_bias(x, like=y) for x, y in ((a, b), (b, a)))
    total = a + b
    finite = a.isfinite() & b.isfinite()
    limits = torch.finfo(total.dtype)
    return torch.where(finite, total.clamp(limits.min, limits.max), total)


def _as_bias(mask: Array, like: Array) -> Array:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)


def split(mask: Array | None) -> tuple[Array | None, Array | None]:
    """A user's mask as (visible, bias): a boolean has no bias; in a float -inf is invisible, all else is bias."""
    if mask is None or mask.dtype == torch.bool:
        return mask, None
    visible = mask != -torch.inf
    return visible, torch.where(visible, mask, 0)


def visible_keys(
    T: int,
    S: int,
    mask: Bool[Array, "..."] | None,
    settings: KernelSettings,
    offset: Offset,
    *,
    device: Device = None,
) -> Bool[Array, "b n t s"] | None:
    """The keys that pass the mask, causal, window and chunk; None where nothing is hidden.

    (b, n, T, S), with b = 1 or n = 1 where all rows or all heads see the same. offset: of the first query from the
    first of the S keys; a block has one of its own.
    """
    conditions = [mask] if mask is not None else []
    if settings.causal:
        conditions.append(causal(T, S, offset, device=device))
    if settings.window is not None:
        conditions.append(window(T, S, settings.window, offset, device=device))
    if settings.chunk is not None:
        conditions.append(chunk(T, S, settings.chunk, offset, device=device))
    if not conditions:
        return None
    visible = combine(*conditions)
    visible = visible if visible.ndim == 4 else visible[None, None]
    return visible.expand(*visible.shape[:2], T, S)


def key_range(T: int, S: int, settings: KernelSettings, offset: int | Integer[Array, "..."]) -> tuple[int, int]:
    """The slice of keys outside which no query sees any; all keys where the offset is a tensor.

    It starts at the start of a chunk, so that chunks can be counted from there.
    """
    if isinstance(offset, Array):
        return 0, S
    first, end, newest = 0, S, offset + T - 1
    if settings.causal:
        end = min(end, newest + 1)
    if settings.window is not None:
        first, end = max(first, offset - settings.window + 1), min(end, newest + settings.window)
    if settings.chunk is not None:
        chunk = settings.chunk
        first, end = max(first, offset) // chunk * chunk, min(end, (newest // chunk + 1) * chunk)
    first = min(first, S)
    return first, max(first, end)

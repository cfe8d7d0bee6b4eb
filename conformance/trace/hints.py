"""Names for what two layers do differently: the conventions that ports most often miss, tried one after the other.

A hint explains a difference that has been found; it never decides whether there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from conformance.trace.fused import misread
from gqa_spec import AttentionConfig

Array = np.ndarray
Side = tuple[AttentionConfig, Mapping[str, Array]]
ROWS = {"q_proj": "q_proj.weight", "k_proj": "k_proj.weight"}


def hint(stage: str, a: Side, b: Side) -> list[str]:
    """Settings that differ, and the known convention that makes A's weights of this stage B's."""
    (config, ours), (other, theirs) = a, b
    found = list(_settings(config, other))
    if stage in ("q_proj", "k_proj", "v_proj", "gate"):
        found += misread(config, ours, theirs)
    if stage in ROWS:
        found += _rows(ROWS[stage], config, ours, theirs)
    if stage in ("q_norm", "k_norm"):
        found += _shifted(f"{stage}.weight", ours, theirs)
    return found


def _settings(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x == y:
            continue
        if is_dataclass(x) and type(x) is type(y):
            yield from _settings(x, y, f"{field.name}.")
        else:
            yield f"{prefix}{field.name} {x!r} in A, {y!r} in B"


def _rows(name: str, config: AttentionConfig, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Iterator[str]:
    """The reordering of A's rows that gives B's, by name."""
    x, y = ours[name], theirs[name]
    if x.shape != y.shape:
        return
    heads = config.num_heads if name.startswith("q") else config.num_kv_heads
    for sentence, rows in _orders(len(x), heads, config):
        if np.array_equal(x[rows, 0], y[:, 0]) and np.array_equal(x[rows], y) and not np.array_equal(x, y):
            yield f"B's {name} is A's {sentence}"
            return
    if x.shape[0] == x.shape[1] and np.array_equal(x.T, y):
        yield f"B's {name} is A's transposed"


def _orders(count: int, heads: int, config: AttentionConfig) -> Iterator[tuple[str, Array]]:
    correct = _half_rows(count, heads)
    for wrong in sorted({config.num_heads, config.num_kv_heads, config.group_size} - {heads}):
        if count % (2 * wrong) == 0:
            mistaken = _half_rows(count, wrong)
            sentence = f"permuted for RoPE with {wrong} heads instead of {heads}"
            yield sentence, np.argsort(correct)[mistaken]  # interleaved rows were made half ones
            yield sentence, np.argsort(mistaken)[correct]  # half rows were made interleaved ones
    yield "with rows paired for RoPE the other way (interleaved made half, or not at all)", correct
    yield "with rows paired for RoPE the other way (half made interleaved, or not at all)", np.argsort(correct)
    if heads == config.num_heads:
        K, G, rows = config.num_kv_heads, config.group_size, np.arange(count)
        yield (
            "with query heads tiled (n % K) instead of grouped (n // G)",
            rows.reshape(K, G, -1).swapaxes(0, 1).ravel(),
        )
        yield (
            "with query heads grouped (n // G) instead of tiled (n % K)",
            rows.reshape(G, K, -1).swapaxes(0, 1).ravel(),
        )


def _half_rows(count: int, heads: int) -> Array:
    """Row numbers of interleaved rows in the order of half ones, pairs in the whole head."""
    return (
        np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).ravel() if count % (2 * heads) == 0 else np.arange(count)
    )


def _shifted(name: str, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Iterator[str]:
    """A norm stored as 1 + w and read as w, or the other way round."""
    if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
        return
    x, y = (side[name].astype(np.float64) for side in (ours, theirs))
    for sentence, shift in (("1 more than A's", 1.0), ("1 less than A's", -1.0)):
        if np.allclose(y - x, shift, rtol=0, atol=1e-2):
            yield f"B's {name} is {sentence}: w was taken for 1 + w, or the other way round"

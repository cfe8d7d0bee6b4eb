"""The stored weights and settings of two models, bit for bit after the mapping to canonical names; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gqa_numpy.rope import attention_factor, inv_freq
from gqa_spec import AttentionConfig, DynamicScaling, LongropeScaling, RopeConfig
from gqa_spec.checks import WIDER

Array = np.ndarray
Weights = Mapping[str, Array]

BLOCK_BYTES = 2**20  # of two tensors that are compared at once
NOT_COMPUTED_WITH = ("dropout", "rope", "scale", "qk_norm_eps")  # of a layer; the last three are compared by meaning


@dataclass(frozen=True)
class StoredDifference:
    """How two tensors differ. count: of their numbers; error: the largest, relative to the largest number of A.
    not_finite: how many numbers of A and of B are not finite.
    """

    count: int
    error: float
    total: int
    not_finite: tuple[int, int]

    def __str__(self) -> str:
        differing = f"{self.count:,} of {self.total:,} numbers differ, by at most {self.error:.2g} of the largest"
        parts = [differing] if self.count else []
        for side, count in zip("AB", self.not_finite, strict=True):
            parts += [f"{side} holds {count:,} that are not finite"] if count else []
        return ", ".join(parts)


def compare_bits(a: Array, b: Array, allowed: float = 0.0) -> StoredDifference:
    """Two tensors of one shape, in blocks. Where their dtypes differ, the wider is rounded to the narrower first.

    Args:
        a: One tensor.
        b: The other.
        allowed: An absolute difference that is none, of norm weights that one side stores as 1 + w.

    Returns:
        What differs; of bfloat16 beside float16 that way of rounding which leaves fewer differences.
    """
    return min((_compared(a, b, dtype, allowed) for dtype in directions(a, b)), key=lambda found: found.count)


def directions(a: Array, b: Array) -> Sequence[np.dtype]:
    """The dtypes in which two tensors are compared: the narrower, or both where neither holds the other's values."""
    if str(a.dtype) in WIDER[str(b.dtype)]:
        return (b.dtype,)
    if str(b.dtype) in WIDER[str(a.dtype)] or a.dtype == b.dtype:
        return (a.dtype,)
    return (b.dtype, a.dtype)


def _compared(a: Array, b: Array, dtype: np.dtype, allowed: float) -> StoredDifference:
    count, error, largest, not_finite = 0, 0.0, 0.0, np.zeros(2, np.int64)
    for x, y in _blocks(a, b):
        with np.errstate(all="ignore"):
            x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
        finite = np.isfinite(x), np.isfinite(y)
        not_finite += [x.size - int(np.count_nonzero(side)) for side in finite]
        largest = max(largest, float(np.max(np.abs(x), where=finite[0], initial=0)))
        places = np.flatnonzero(x.view(f"u{dtype.itemsize}") != y.view(f"u{dtype.itemsize}"))
        if len(places):
            p, q = x[places].astype(np.float64), y[places].astype(np.float64)
            with np.errstate(invalid="ignore"):
                apart = np.where(np.isfinite(p) & np.isfinite(q), np.abs(p - q), np.inf)
            apart = apart[~(apart <= allowed)] if allowed else apart
            count += len(apart)
            error = max(error, float(np.max(apart, initial=0.0)))
    return StoredDifference(count, error / (largest or 1.0), a.size, (int(not_finite[0]), int(not_finite[1])))


def _blocks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both in one order, flat."""
    rows = max(1, BLOCK_BYTES // max(1, np.atleast_1d(a)[:1].nbytes))
    for start in range(0, len(np.atleast_1d(a)), rows):
        block = slice(start, start + rows)
        yield (np.ascontiguousarray(np.atleast_1d(x)[block]).reshape(-1) for x in (a, b))  # type: ignore[misc]


def compare_weights(a: Weights, b: Weights, allowed: Mapping[str, float]) -> tuple[list[str], float, list[str]]:
    """The weights of two layers, or around them.

    Returns:
        A sentence for each weight that differs, the largest error, and a sentence for each that is equal and holds
        numbers that are not finite.
    """
    differing, error, noted = [], 0.0, []
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            differing.append(f"{name}: only {'A' if name in a else 'B'} has it")
            error = np.inf
            continue
        ours, theirs = a[name], b[name]
        if ours.shape != theirs.shape:
            differing.append(f"{name}: shape {ours.shape} in A, {theirs.shape} in B")
            error = np.inf
            continue
        found = compare_bits(ours, theirs, allowed.get(name, 0.0))
        if found.count:
            differing.append(f"{name}: {found}")
            error = max(error, found.error)
        elif any(found.not_finite):
            noted.append(f"{name}: {found}")
    return differing, error, noted


# --- settings --------------------------------------------------------------------------------------------------------


def layer_settings(config: AttentionConfig) -> dict[str, Any]:
    """What the settings of a layer mean, so that different ways to write the same are equal. Pairing is the rows'."""
    named = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_COMPUTED_WITH}
    return {
        **named,
        "scale": config.head_dim**-0.5 if config.scale is None else config.scale,
        "qk_norm_eps": config.qk_norm_eps if config.qk_norm else None,
    }


def settings_differences(a: AttentionConfig, b: AttentionConfig) -> list[str]:
    """A sentence for each setting of a layer that differs and changes what it computes."""
    ours, theirs = layer_settings(a), layer_settings(b)
    found = [f"{name} {ours[name]!r} in A, {theirs[name]!r} in B" for name in ours if ours[name] != theirs[name]]
    return found + rope_differences(a, b)


def rope_differences(a: AttentionConfig, b: AttentionConfig) -> list[str]:
    """Frequencies and factors of RoPE that differ, at every length at which a scaling changes."""
    if a.rope is None or b.rope is None:
        return [] if a.rope is b.rope else [f"rope {a.rope!r} in A, {b.rope!r} in B"]
    if a.rotary_dim != b.rotary_dim:
        return [f"rotary_dim {a.rotary_dim} in A, {b.rotary_dim} in B"]
    found = []
    for length in sorted(rope_lengths(a.rope) | rope_lengths(b.rope)):
        ours, theirs = (inv_freq(rope, a.rotary_dim, length) for rope in (a.rope, b.rope))
        pairs = np.flatnonzero(ours != theirs)
        if len(pairs):
            pair = int(pairs[0])
            found.append(
                f"rope at length {length}: {len(pairs)} of {len(ours)} frequencies differ, pair {pair}: "
                f"{ours[pair]:.6g} in A, {theirs[pair]:.6g} in B"
            )
    factors = attention_factor(a.rope), attention_factor(b.rope)
    return found + ([f"attention factor {factors[0]:.6g} in A, {factors[1]:.6g} in B"] if len({*factors}) > 1 else [])


def rope_lengths(rope: RopeConfig) -> set[int]:
    """A length on each side of every change of the frequencies."""
    if not isinstance(rope.scaling, DynamicScaling | LongropeScaling):
        return {1}
    original = rope.scaling.original_max_position_embeddings
    return {original, 2 * original}

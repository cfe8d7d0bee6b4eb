"""One tensor with the rows of several projections, read with its pieces in another order than it was written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gqa_spec import AttentionConfig

Array = np.ndarray
QKV, WITH_GATE = ("q_proj.weight", "k_proj.weight", "v_proj.weight"), ("q_proj.weight", "gate_proj.weight")
# The order that the tensor has, and the one that it was read in: sentences for a difference between A and B.
BLOCKS, GROUPS = "[q | k | v]", "[G query heads | key head | value head] for each KV head"
HALVES, HEADS = "[all queries | all gates]", "[query | gate] for each head"


def misread(config: AttentionConfig, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Iterator[str]:
    """The order in which B's projections were taken out of a tensor that A's were taken out of rightly, by name."""
    K, G, H, Hv = config.num_kv_heads, config.group_size, config.head_dim, config.v_head_dim
    of_group, of_head = (G * H, H, Hv), (H, Hv)
    if config.output_gate:
        yield from _read_as(WITH_GATE, ours, theirs, config.num_heads, of_head, (HALVES, HEADS))
        exchanged = zip(WITH_GATE, reversed(WITH_GATE), strict=True)
        if all(other in theirs and np.array_equal(ours[name], theirs[other]) for name, other in exchanged):
            yield "B's q_proj is A's gate_proj, and the other way round"
    if config.kv_dim == config.embed_dim:
        yield from _read_as(QKV, ours, theirs, K, of_group, (BLOCKS, GROUPS))


def _read_as(
    names: tuple[str, ...],
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    parts: int,
    rows: tuple[int, ...],
    orders: tuple[str, str],
) -> Iterator[str]:
    """orders: the names of all rows of a piece after one another, and of a share of each for each of `parts`."""
    if any(name not in theirs or theirs[name].shape != ours[name].shape for name in names):
        return
    pieces = [np.asarray(ours[name]) for name in names]
    if all(np.array_equal(piece, theirs[name]) for piece, name in zip(pieces, names, strict=True)):
        return
    whole = np.arange(sum(len(piece) for piece in pieces))
    in_parts = np.concatenate(_shares(whole, parts, rows))  # the rows in the order of pieces, of a tensor in parts
    for order, (stored, read) in ((in_parts, orders), (np.argsort(in_parts), orders[::-1])):
        mistaken = np.split(np.concatenate(pieces)[order], np.cumsum([len(piece) for piece in pieces])[:-1])
        if all(np.array_equal(piece, theirs[name]) for piece, name in zip(mistaken, names, strict=True)):
            short = ", ".join(name.removesuffix(".weight") for name in names)
            yield f"B's {short} were read as {read} from a tensor that holds {stored}"


def _shares(rows_of: Array, parts: int, rows: tuple[int, ...]) -> list[Array]:
    ends = np.cumsum(rows)[:-1]
    return [piece.ravel() for piece in np.split(rows_of.reshape(parts, -1), ends, axis=1)]

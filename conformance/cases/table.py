"""The case table: which groupings, crossed with which features. Every case is named, every axis its own number.

A feature says what it switches on, which clause of SPEC.md it checks and which fault it guards against. A grouping is
a row of `GROUPINGS` and names the features that it is run with, so that each case can be read off the page. Features
with sizes of their own (`conformance.cases.sizes`) are cases without a grouping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from conformance.cases.features import Feature
from conformance.cases.kernel_features import BASIC, PAIRS, SHAPES, VALUES
from conformance.cases.layer_features import LAYER
from conformance.cases.sizes import KERNEL_SIZES, LAYER_SIZES
from gqa_spec import AttentionConfig

FEATURES = (*BASIC, *LAYER)
SIZED = (*chain.from_iterable(KERNEL_SIZES.values()), *chain.from_iterable(LAYER_SIZES.values()))
FEATURE = {feature.name: feature for feature in (*FEATURES, *VALUES, *SHAPES, *PAIRS, *SIZED)}


@dataclass(frozen=True)
class Grouping:
    """N query heads over K key/value heads, K different from G, and the features that this grouping is run with."""

    name: str
    num_heads: int
    num_kv_heads: int
    features: tuple[str, ...]
    queries: int | None = None


def _row(name: str, num_heads: int, num_kv_heads: int, features: str) -> Grouping:
    return Grouping(name, num_heads, num_kv_heads, tuple(feature.strip() for feature in features.split("|")))


# 6 over 2 runs every feature. Every row has a plain self-attention layer, which any class can run, and one or two
# features more.
ALL_FEATURES = "GQA 6 over 2"
GROUPINGS = (
    _row("MHA 2", 2, 2, "square causal | mask per head | RoPE half"),
    _row("MHA 3", 3, 3, "square | whole layer | RoPE, offset per row"),
    _row("MHA 5", 5, 5, "square mask | causal, offset per row"),
    _row("MHA 7", 7, 7, "square | bool mask | QK-norm rms"),
    _row("MHA 8", 8, 8, "square | float mask"),
    _row("MHA 12", 12, 12, "square causal | biases | everything"),
    _row("MHA 16", 16, 16, "square | empty rows"),
    _row(ALL_FEATURES, 6, 2, " | ".join(feature.name for feature in FEATURES)),
    _row("GQA 6 over 3", 6, 3, "square causal | poison | QK-norm rms_full"),
    _row("GQA 8 over 2", 8, 2, "square | mask per head"),
    _row("GQA 8 over 4", 8, 4, "square | padding | window band"),
    _row("GQA 10 over 2", 10, 2, "square | sinks and window"),
    _row("GQA 10 over 5", 10, 5, "square | float mask with -inf | RoPE half"),
    _row("GQA 12 over 2", 12, 2, "square | mask per row"),
    _row("GQA 12 over 3", 12, 3, "square mask | finfo.min bias | everything"),
    _row("GQA 12 over 4", 12, 4, "square | window of one"),
    _row("GQA 12 over 6", 12, 6, "square | causal, offset 0 | biases"),
    _row("GQA 14 over 2", 14, 2, "square causal | chunk, offset per row"),
    _row("GQA 14 over 7", 14, 7, "square | causal, more queries than keys | sinks"),
    _row("GQA 15 over 3", 15, 3, "square | float mask"),
    _row("GQA 15 over 5", 15, 5, "square | mask per head | QK-norm rms_full"),
    _row("GQA 16 over 2", 16, 2, "square causal | softcap and mask"),
    _row("GQA 16 over 8", 16, 8, "square | padding | causal, offset per row"),
    _row("GQA 18 over 3", 18, 3, "square | empty rows"),
    _row("GQA 18 over 6", 18, 6, "square | chunk | QK-norm rms_plus_one"),
    _row("GQA 20 over 4", 20, 4, "square mask | sinks and window"),
    _row("GQA 20 over 5", 20, 5, "square | float mask with -inf | window band"),
    _row("GQA 21 over 3", 21, 3, "square | poison"),
    _row("GQA 21 over 7", 21, 7, "square | causal and mask | QK-norm rms"),
    _row("GQA 24 over 3", 24, 3, "square causal | causal"),
    _row("GQA 24 over 8", 24, 8, "square | finfo.min bias | window of one"),
    _row("GQA 28 over 4", 28, 4, "square | everything"),
    _row("GQA 30 over 5", 30, 5, "square | padding | QK-norm rms_full"),
    _row("GQA 32 over 4", 32, 4, "square mask | causal, offset 0"),
    _row("GQA 32 over 8", 32, 8, "square causal | window | RoPE half"),
    _row("GQA 22 over 2", 22, 2, "square | bool mask"),
    _row("GQA 26 over 2", 26, 2, "square | poison and softcap | RoPE partial"),
    _row("GQA 28 over 7", 28, 7, "square | float mask"),
    _row("MQA 2", 2, 1, "square causal | mask per head | RoPE interleaved"),
    _row("MQA 3", 3, 1, "square mask | sinks"),
    _row("MQA 5", 5, 1, "square | everything | poison"),
    _row("MQA 7", 7, 1, "square | window | whole layer"),
    _row("MQA 8", 8, 1, "square causal | everything"),
    _row("MQA 12", 12, 1, "square | causal and mask | RoPE half"),
    _row("MQA 16", 16, 1, "square | empty rows"),
)

KERNEL_ROWS = ("MHA 3", ALL_FEATURES, "MQA 5")
KERNEL_FEATURES = tuple(feature for feature in BASIC if not feature.square)
TWO_RULES = "two rules"
OTHER_ROWS = {"values": VALUES, "masks and offsets": SHAPES, TWO_RULES: PAIRS}
# Decoding: every feature of a kernel with one query, and of a layer those that could take another path.
ONE_QUERY = Grouping(
    "one query, 8 over 2", 8, 2, tuple(f.name for f in KERNEL_FEATURES if not f.long_queries), queries=1
)
ONE_QUERY_LAYER = (
    "causal", "padding", "sinks and window", "everything", "QK-norm rms", "RoPE half", "RoPE, offset per row",
    "whole layer",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One feature with a grouping, or with sizes of its own: a config and the sizes of the inputs."""

    name: str
    grouping: str
    feature: Feature
    config: AttentionConfig
    B: int
    T: int
    S: int

    @property
    def self_attention(self) -> bool:
        return self.feature.square

    @property
    def differentiated(self) -> bool:
        """Whether gradients are compared."""
        return self.feature.gradients or self.grouping in (ALL_FEATURES, TWO_RULES)

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key there are, over all heads and rows."""
        return self.B * self.config.num_heads * self.T * self.S


def cases() -> Iterator[Case]:
    """Every case of the table of groupings, in its order."""
    for grouping in GROUPINGS:
        for name in grouping.features:
            yield _case(grouping, FEATURE[name])


def layer_cases() -> list[Case]:
    """The cases of a layer: all but those that need a kernel's own inputs."""
    crossed = (case for case in cases() if not case.feature.kernel_only)
    one_query = (_case(ONE_QUERY, FEATURE[name]) for name in ONE_QUERY_LAYER)
    return [*crossed, *one_query, *_sized(LAYER_SIZES)]


def kernel_cases() -> list[Case]:
    """The cases of a kernel without projections: the basic features on one MHA, one GQA and one MQA grouping and with
    one query, the others with 6 heads over 2, and those with sizes of their own.
    """
    rows = [grouping for grouping in GROUPINGS if grouping.name in KERNEL_ROWS]
    crossed = [_case(grouping, feature) for grouping in rows for feature in KERNEL_FEATURES]
    one_query = [_case(ONE_QUERY, FEATURE[name]) for name in ONE_QUERY.features]
    others = [_case(Grouping(row, 6, 2, ()), feature) for row, features in OTHER_ROWS.items() for feature in features]
    return [*crossed, *one_query, *others, *_sized(KERNEL_SIZES)]


def _sized(rows: dict[str, tuple[Feature, ...]]) -> Iterator[Case]:
    for row, features in rows.items():
        for feature in features:
            n = feature.sizes
            assert n is not None
            sizes: dict[str, Any] = {"embed_dim": n.N * n.H if feature.square else 29, "head_dim": n.H}
            sizes |= {} if feature.square else {"v_head_dim": n.Hv, "kv_dim": 37}
            config = AttentionConfig(num_heads=n.N, num_kv_heads=n.K, **sizes, **feature.settings)
            yield Case(f"{row} / {feature.name}", row, feature, config, n.B, n.T, n.S)


def _case(grouping: Grouping, feature: Feature) -> Case:
    N, K = grouping.num_heads, grouping.num_kv_heads
    taken = {N, K, N // K}
    # Hv is small, so that the N * Hv products of the output projection add up to few ulps in any BLAS's order.
    Hv, B, T, S = (_free(taken, sizes) for sizes in ((3, 2, 5), (2, 3, 5, 7), (5, 7, 11), (13, 17, 19)))
    # H is even, because RoPE rotates pairs; every other axis is a prime of its own.
    H, D, E = (_free(taken, sizes) for sizes in ((12, 18, 24), (29, 31), (37, 41)))
    T = grouping.queries or T
    if feature.long_queries:
        T, S = S, T
    sizes: dict[str, Any] = {"embed_dim": D, "head_dim": H, "v_head_dim": Hv, "kv_dim": E}
    if feature.given != "query, key, value":  # a key that defaults to the query has its width, a value the key's
        sizes |= {"kv_dim": D if feature.given == "query, value" else E}
        S = T if feature.given == "query, value" else S
    if feature.square:
        S, sizes = T, {"embed_dim": N * H}
    config = AttentionConfig(num_heads=N, num_kv_heads=K, **sizes, **feature.settings)
    return Case(f"{grouping.name} / {feature.name}", grouping.name, feature, config, B, T, S)


def _free(taken: set[int], sizes: tuple[int, ...]) -> int:
    size = next(size for size in sizes if size not in taken)
    taken.add(size)
    return size

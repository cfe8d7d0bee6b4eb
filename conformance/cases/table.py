"""The case table: which groupings, crossed with which features. Every case is named, every axis its own number.

A feature says what it switches on, which clause of SPEC.md it checks and which fault it guards against. A grouping is
a row of `GROUPINGS` and names the features that it is run with, so that each case can be read off the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gqa_spec import (
    AttentionConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)

MaskKind = Literal[
    "bool (T, S)", "bool per row", "bool per head", "padding", "float per head", "float with -inf", "finfo.min",
    "empty rows", "poisoned padding",
]  # fmt: skip
OffsetKind = Literal["zero", "per row"]


@dataclass(frozen=True)
class Feature:
    """What a case switches on. square: head sizes and widths at their defaults and key = query, as a plain layer has
    them; otherwise every axis differs. long_queries: more queries than keys. layer: the kernel alone cannot show it.
    """

    name: str
    clause: int
    guards: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskKind | None = None
    offset: OffsetKind | None = None
    positions: bool = False
    dropout: bool = False
    square: bool = False
    long_queries: bool = False
    layer: bool = False


FEATURES = (
    Feature("plain", 1, "query heads that read the wrong KV head"),
    Feature("square", 1, "a plain layer: default head sizes, self-attention", square=True),
    Feature("square causal", 4, "a plain layer that sees the future", {"causal": True}, square=True),
    Feature("square mask", 3, "a plain layer with an inverted mask", mask="bool (T, S)", square=True),
    Feature("bool mask", 3, "True read as masked", mask="bool (T, S)"),
    Feature("mask per row", 3, "one row's mask used for another", mask="bool per row"),
    Feature("mask per head", 3, "one head's mask used for another", mask="bool per head"),
    Feature("padding", 3, "padded keys that leak", mask="padding"),
    Feature("float mask", 3, "a bias read as a boolean", mask="float per head"),
    Feature("float mask with -inf", 3, "-inf that leaks or turns to NaN", mask="float with -inf"),
    Feature("finfo.min bias", 3, "a finite bias read as a mask, min + min overflowing", mask="finfo.min"),
    Feature("causal", 4, "causal masks aligned top-left", {"causal": True}),
    Feature("causal, offset 0", 4, "an offset that is ignored", {"causal": True}, offset="zero"),
    Feature("causal, offset per row", 4, "one row's offset used for another", {"causal": True}, offset="per row"),
    Feature("causal, more queries than keys", 5, "first queries that see no key", {"causal": True}, long_queries=True),
    Feature("causal and mask", 3, "one of two masks dropped", {"causal": True}, mask="bool per row"),
    Feature("window", 4, "a window of W + 1 or W - 1 keys", {"causal": True, "window": 3}),
    Feature("window band", 4, "a band that leans to one side", {"window": 3}),
    Feature("window of one", 4, "an off-by-one that only the smallest window shows", {"causal": True, "window": 1}),
    Feature("chunk", 4, "chunks counted from the wrong end", {"chunk": 4}),
    Feature("chunk, offset per row", 4, "negative places rounded to 0", {"chunk": 4}, offset="per row"),
    Feature("scale", 2, "a scale that is ignored", {"scale": 0.731}),
    Feature("softcap", 2, "cap before scale, or after the softmax", {"softcap": 0.9, "scale": 0.7}),
    Feature("softcap and mask", 2, "cap after the mask", {"softcap": 0.9, "scale": 0.7}, mask="float with -inf"),
    Feature("sinks", 8, "sinks per KV head, scaled, or in the numerator", {"sinks": True}),
    Feature("sinks and window", 8, "sinks that are masked", {"sinks": True, "causal": True, "window": 3}),
    Feature("empty rows", 5, "mean(V) or NaN where no key is visible", mask="empty rows"),
    Feature("empty rows and sinks", 5, "empty rows that a sink fills", {"sinks": True}, mask="empty rows"),
    Feature("poison", 6, "NaN in invisible keys that leaks", mask="poisoned padding"),
    Feature("poison and softcap", 6, "NaN that comes back through tanh", {"softcap": 0.9}, mask="poisoned padding"),
    Feature("dropout", 9, "weights returned after dropout", dropout=True),
    Feature(
        "everything", 3, "an order of operations that only shows when all are on",
        {"causal": True, "window": 5, "softcap": 0.9, "scale": 0.7, "sinks": True},
        mask="float with -inf", offset="per row",
    ),
    Feature("biases", 16, "a bias left behind in a port", {"qkv_bias": True, "out_bias": True}, layer=True),
    Feature("QK-norm rms", 11, "a norm after RoPE", {"qk_norm": "rms", "rope": RopeConfig()}, layer=True),
    Feature(
        "QK-norm rms_plus_one", 11, "w where 1 + w is meant",
        {"qk_norm": "rms_plus_one", "rope": RopeConfig()}, layer=True,
    ),
    Feature("QK-norm rms_full", 11, "a norm per head", {"qk_norm": "rms_full", "rope": RopeConfig()}, layer=True),
    Feature("square RoPE", 10, "values rotated too", {"rope": RopeConfig(), "causal": True}, square=True, layer=True),
    Feature("RoPE half", 10, "interleaved pairs", {"rope": RopeConfig(), "causal": True}, layer=True),
    Feature("RoPE interleaved", 10, "half-split pairs", {"rope": RopeConfig(pairing="interleaved")}, layer=True),
    Feature(
        "RoPE partial", 10, "all dimensions rotated, or divided by head_dim",
        {"rope": RopeConfig(rotary_dim=6, theta=1e5)}, layer=True,
    ),
    Feature(
        "RoPE linear", 10, "positions multiplied by the factor",
        {"rope": RopeConfig(scaling=LinearScaling(factor=3.0))}, layer=True,
    ),
    Feature(
        "RoPE dynamic", 10, "a base that does not grow",
        {"rope": RopeConfig(scaling=DynamicScaling(factor=3.0, original_max_position_embeddings=7))}, layer=True,
    ),
    Feature(
        "RoPE yarn", 10, "an attention factor on one of cos and sin",
        {"rope": RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=40, beta_fast=5.0))},
        positions=True, layer=True,
    ),
    Feature(
        "RoPE yarn, own factor", 10, "a ramp rounded to whole pairs, a factor that is ignored",
        {"rope": RopeConfig(scaling=YarnScaling(
            factor=4.0, original_max_position_embeddings=40, beta_fast=5.0, truncate=False, attention_factor=1.7,
        ))},
        positions=True, layer=True,
    ),
    Feature(
        "RoPE llama3", 10, "a scaling that short prompts do not show",
        {"rope": RopeConfig(scaling=Llama3Scaling(
            factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0,
        ))},
        positions=True, layer=True,
    ),
    Feature(
        "RoPE longrope", 10, "short factors past the original context",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=7,
        ))},
        layer=True,
    ),
    Feature(
        "RoPE longrope, short", 10, "long factors within the original context",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=70,
        ))},
        layer=True,
    ),
    Feature("RoPE, offset per row", 10, "no offset in RoPE", {"rope": RopeConfig()}, offset="per row", layer=True),
    Feature("RoPE at given positions", 10, "angles in 16 bit", {"rope": RopeConfig()}, positions=True, layer=True),
    Feature(
        "RoPE and biases", 16, "a port that permutes weights and not their biases",
        {"rope": RopeConfig(), "qkv_bias": True}, layer=True,
    ),
    Feature(
        "whole layer", 10, "stages in the wrong order",
        {
            "causal": True, "window": 5, "softcap": 0.9, "sinks": True, "qkv_bias": True, "out_bias": True,
            "qk_norm": "rms", "rope": RopeConfig(theta=5e5),
        },
        mask="float per head", layer=True,
    ),
)  # fmt: skip
FEATURE = {feature.name: feature for feature in FEATURES}


@dataclass(frozen=True)
class Grouping:
    """N query heads over K key/value heads, K different from G, and the features that this grouping is run with."""

    name: str
    num_heads: int
    num_kv_heads: int
    features: tuple[str, ...]


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
    _row(ALL_FEATURES, 6, 2, " | ".join(FEATURE)),
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


@dataclass(frozen=True)
class Case:
    """One grouping with one feature: a config and the sizes of the inputs."""

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


def cases() -> Iterator[Case]:
    """Every case of the table, in its order."""
    for grouping in GROUPINGS:
        for name in grouping.features:
            yield _case(grouping, FEATURE[name])


def layer_cases() -> list[Case]:
    """The cases of a layer: all but the kernel's own dropout multiplier."""
    return [case for case in cases() if not case.feature.dropout]


def kernel_cases() -> list[Case]:
    """The cases of a kernel without projections: every feature on one MHA, one GQA and one MQA grouping."""
    rows = [grouping for grouping in GROUPINGS if grouping.name in KERNEL_ROWS]
    features = [feature for feature in FEATURES if not feature.layer and not feature.square]
    return [_case(grouping, feature) for grouping in rows for feature in features]


def _case(grouping: Grouping, feature: Feature) -> Case:
    N, K = grouping.num_heads, grouping.num_kv_heads
    taken = {N, K, N // K}
    # Hv is small, so that the N * Hv products of the output projection add up to few ulps in any BLAS's order.
    Hv, B, T, S = (_free(taken, sizes) for sizes in ((3, 2, 5), (2, 3, 5, 7), (5, 7, 11), (13, 17, 19)))
    # H is even, because RoPE rotates pairs; every other axis is a prime of its own.
    H, D, E = (_free(taken, sizes) for sizes in ((12, 18, 24), (29, 31), (37, 41)))
    if feature.long_queries:
        T, S = S, T
    sizes: dict[str, Any] = {"embed_dim": D, "head_dim": H, "v_head_dim": Hv, "kv_dim": E}
    if feature.square:
        S, sizes = T, {"embed_dim": N * H}
    config = AttentionConfig(num_heads=N, num_kv_heads=K, **sizes, **feature.settings)
    return Case(f"{grouping.name} / {feature.name}", grouping.name, feature, config, B, T, S)


def _free(taken: set[int], sizes: tuple[int, ...]) -> int:
    size = next(size for size in sizes if size not in taken)
    taken.add(size)
    return size

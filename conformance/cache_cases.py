"""Cases for caches: a sequence cut into chunks must give what one whole pass gives, row for row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

import gqa_numpy
from conformance.compare import error_of
from gqa_spec import AttentionConfig, DynamicScaling, RopeConfig
from gqa_spec.weights import weight_shapes

Array = np.ndarray
BATCH, LENGTH, MAX_LENGTH = 2, 17, 23
Splits = tuple[tuple[int, int], ...]
UNEQUAL: Splits = ((3, 5), (4, 2), (1, 1), (5, 6))


@dataclass(frozen=True)
class CacheCase:
    """splits: how many tokens each of the two rows of the batch appends, step by step."""

    name: str
    splits: Splits
    rolling: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> AttentionConfig:
        settings: dict[str, Any] = {"rope": RopeConfig(), **self.settings}
        return AttentionConfig(embed_dim=13, num_heads=6, num_kv_heads=2, head_dim=8, causal=True, **settings)


WINDOW, CHUNK = {"window": 4}, {"window": 4, "chunk": 5}
CASES = (
    CacheCase("chunks of unequal rows", UNEQUAL),
    CacheCase("token by token", ((1, 1),) * 7),
    CacheCase("a window, all held", UNEQUAL, settings=WINDOW),
    CacheCase("rolling, chunks of unequal rows", UNEQUAL, rolling=True, settings=WINDOW),
    CacheCase("rolling, token by token", ((1, 1),) * 9, rolling=True, settings=WINDOW),
    CacheCase("rolling, a first chunk longer than the window", ((7, 9), (2, 1), (3, 4)), rolling=True, settings=WINDOW),
    CacheCase("Llama 4's chunks", UNEQUAL, settings={"chunk": 5}),
    CacheCase("rolling, Llama 4's chunks", UNEQUAL, rolling=True, settings=CHUNK),
    CacheCase(
        "dynamic NTK", UNEQUAL,
        settings={"rope": RopeConfig(scaling=DynamicScaling(factor=3.0, original_max_position_embeddings=7))},
    ),
)  # fmt: skip


@cache
def by_name() -> dict[str, CacheCase]:
    return {case.name: case for case in CASES}


def weights(case: CacheCase) -> dict[str, Array]:
    rng = np.random.default_rng(len(case.name))
    return {name: rng.normal(size=shape) for name, shape in weight_shapes(case.config).items()}


def tokens() -> Array:
    return np.random.default_rng(0).normal(size=(BATCH, LENGTH, 13))


def error(case: CacheCase, extend: Callable[[Array, list[int]], Array]) -> float:
    """The largest difference of chunks from the whole pass, relative to its largest value.

    extend: takes x (B, T, D) and how many tokens of each row are real, and gives their output (B, T, D).
    """
    x, whole = tokens(), _whole(case.name)
    seen, worst = np.zeros(BATCH, int), 0.0
    for counts in case.splits:
        padded = np.ones((BATCH, max(counts), x.shape[2]))
        for row, count in enumerate(counts):
            padded[row, :count] = x[row, seen[row] : seen[row] + count]
        output = extend(padded, list(counts))
        for row, count in enumerate(counts):
            worst = max(worst, error_of(output[row, :count], whole[row, seen[row] : seen[row] + count]))
        seen += counts
    return worst


@cache
def _whole(name: str) -> Array:
    case = by_name()[name]
    layer = gqa_numpy.GroupedQueryAttention.from_config(case.config).eval().load_weights(weights(case))
    output, _ = layer(tokens(), rope_length=MAX_LENGTH)
    return output

"""Cases for caches: a sequence cut into chunks must give what one whole pass gives, row for row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases.compare import error_of
from conformance.cases.inputs import DTYPES
from gqa_spec import AttentionConfig, DynamicScaling, RopeConfig
from gqa_weights import weight_shapes

Array = np.ndarray
BATCH, LENGTH, MAX_LENGTH = 2, 17, 23
Splits = tuple[tuple[int, int], ...]
EQUAL: Splits = ((3, 3), (4, 4), (1, 1), (5, 5))
UNEQUAL: Splits = ((3, 5), (4, 2), (1, 1), (5, 6))


@dataclass(frozen=True)
class CacheCase:
    """splits: how many tokens each of the two rows of the batch appends, step by step. overfills: more than the cache
    can hold.
    """

    name: str
    splits: Splits
    rolling: bool = False
    overfills: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> AttentionConfig:
        sizes: dict[str, Any] = {"embed_dim": 13, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
        return AttentionConfig(**sizes | {"causal": True, "rope": RopeConfig()} | dict(self.settings))


WINDOW, CHUNK = {"window": 4}, {"window": 4, "chunk": 5}
CASES = (
    CacheCase("chunks", EQUAL),
    CacheCase("chunks of unequal rows", UNEQUAL),
    CacheCase("token by token", ((1, 1),) * 7),
    CacheCase("token by token, no RoPE", ((1, 1),) * 7, settings={"rope": None}),
    CacheCase("a window, chunks", EQUAL, settings=WINDOW),
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


def tokens(case: CacheCase) -> Array:
    return np.random.default_rng(0).normal(size=(BATCH, LENGTH, case.config.embed_dim))


Extend = Callable[[Array, list[int]], Array]


def error(case: CacheCase, extend: Extend) -> float:
    """The largest difference of chunks from the whole pass, relative to its largest value.

    extend: takes x (B, T, D) and how many tokens of each row are real, and gives their output (B, T, D).
    """
    return error_of(chunks(case, extend), whole(case, "float64"))


def chunks(case: CacheCase, extend: Extend, dtype: str = "float64") -> Array:
    """What the case's chunks give, put together row for row; 0 for the tokens that it does not append."""
    x, seen = tokens(case).astype(DTYPES[dtype]), np.zeros(BATCH, int)
    joined = x[:0]
    for counts in case.splits:
        padded = np.ones((BATCH, max(counts), x.shape[2]), x.dtype)
        for row, count in enumerate(counts):
            padded[row, :count] = x[row, seen[row] : seen[row] + count]
        output = extend(padded, list(counts))
        joined = joined if joined.size else np.zeros(x.shape, output.dtype)
        for row, count in enumerate(counts):
            joined[row, seen[row] : seen[row] + count] = output[row, :count]
        seen += counts
    return joined


def whole(case: CacheCase, dtype: str) -> Array:
    """What one pass of the NumPy backend gives for the tokens that the case appends, 0 for the others."""
    layer = gqa_numpy.GroupedQueryAttention.from_config(case.config, dtype=DTYPES[dtype]).eval()
    layer.load_weights({name: x.astype(DTYPES[dtype]) for name, x in weights(case).items()})
    output, _ = layer(tokens(case).astype(DTYPES[dtype]), rope_length=MAX_LENGTH)
    appended = np.arange(LENGTH) < np.sum(case.splits, axis=0)[:, None]
    return np.where(appended[..., None], output, DTYPES[dtype].type(0))

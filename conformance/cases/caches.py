"""Cases for caches: a sequence cut into chunks must give what one whole pass gives, row for row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases.compare import error_of
from conformance.cases.inputs import DTYPES
from gqa_spec import AttentionConfig, DynamicScaling, RopeConfig
from gqa_weights import weight_shapes

Array = np.ndarray
FREE_SLOTS = 6  # positions that a cache has beyond the tokens of its case
Splits = tuple[tuple[int, ...], ...]
EQUAL: Splits = ((3, 3), (4, 4), (1, 1), (5, 5))
UNEQUAL: Splits = ((3, 5), (4, 2), (1, 1), (5, 6))
FIVE: Splits = ((3, 5, 1, 4, 2), (4, 2, 6, 1, 3), (1, 1, 1, 1, 1), (2, 4, 3, 5, 1))
SOME_EMPTY: Splits = ((3, 0), (0, 4), (1, 1), (0, 0), (2, 0))
# Past the 64, 128 and 256 tokens by which caches grow, with a first chunk and single tokens on both sides.
PAST_256: Splits = ((130,), *((1,),) * 5, (130,), (1,))


@dataclass(frozen=True)
class CacheCase:
    """splits: how many tokens each row of the batch appends, step by step. overfills: more than the cache can hold.

    in_turn: two caches of one layer, filled with different tokens step by step.
    """

    name: str
    splits: Splits
    rolling: bool = False
    overfills: bool = False
    in_turn: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> AttentionConfig:
        sizes: dict[str, Any] = {"embed_dim": 13, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
        return AttentionConfig(**sizes | {"causal": True, "rope": RopeConfig()} | dict(self.settings))

    @property
    def batch(self) -> int:
        return len(self.splits[0])

    @property
    def length(self) -> int:
        """How many tokens there are, of which the longest row appends all but a few."""
        return max(17, *np.sum(self.splits, axis=0))

    @property
    def max_length(self) -> int:
        return self.length + FREE_SLOTS


WINDOW, CHUNK = {"window": 4}, {"window": 4, "chunk": 5}
EVERYTHING = {
    "window": 6, "softcap": 0.9, "sinks": True, "qk_norm": "rms", "qkv_bias": True, "out_bias": True, "scale": 0.7,
}  # fmt: skip
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
    CacheCase("five rows", FIVE),
    CacheCase("rows without a token", SOME_EMPTY),
    CacheCase("rolling, rows without a token", SOME_EMPTY, rolling=True, settings=WINDOW),
    CacheCase("two caches in turn", EQUAL, in_turn=True),
    CacheCase("one row of more than 256 tokens", PAST_256),
    CacheCase("more than 256 tokens, a window of 70", PAST_256, settings={"window": 70}),
    CacheCase("rolling, more than 256 tokens", PAST_256, rolling=True, settings={"window": 70}),
    CacheCase("sinks", UNEQUAL, settings={"sinks": True}),
    CacheCase("softcap", EQUAL, settings={"softcap": 0.9}),
    CacheCase("QK-norm", EQUAL, settings={"qk_norm": "rms"}),
    CacheCase("biases", EQUAL, settings={"qkv_bias": True, "out_bias": True}),
    CacheCase("everything", UNEQUAL, settings=EVERYTHING),
    CacheCase("rolling, everything", FIVE, rolling=True, settings=EVERYTHING),
    CacheCase("one KV head, interleaved pairs in part of the head", UNEQUAL, settings={
        "num_kv_heads": 1, "v_head_dim": 5, "rope": RopeConfig(pairing="interleaved", rotary_dim=4),
    }),
)  # fmt: skip


def weights(case: CacheCase) -> dict[str, Array]:
    rng = np.random.default_rng(len(case.name))
    return {name: rng.normal(size=shape) for name, shape in weight_shapes(case.config).items()}


def tokens(case: CacheCase, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(case.batch, case.length, case.config.embed_dim))


Extend = Callable[[Array, list[int]], Array]


def error(case: CacheCase, extend: Extend) -> float:
    """The largest difference of chunks from the whole pass, relative to its largest value.

    extend: takes x (B, T, D) and how many tokens of each row are real, and gives their output (B, T, D).
    """
    return error_of(chunks(case, extend), whole(case, "float64"))


def chunks(case: CacheCase, extend: Extend, dtype: str = "float64", seed: int = 0) -> Array:
    """What the case's chunks give, put together row for row; 0 for the tokens that it does not append."""
    *_, joined = _steps(case, extend, dtype, seed)
    return joined


def chunks_in_turn(case: CacheCase, extends: Sequence[Extend], dtype: str) -> list[Array]:
    """As `chunks` for several caches with tokens of their own, step by step."""
    steps = [_steps(case, extend, dtype, seed) for seed, extend in enumerate(extends)]
    return list(list(zip(*steps, strict=True))[-1])


def _steps(case: CacheCase, extend: Extend, dtype: str, seed: int) -> Iterator[Array]:
    """What there is after each step."""
    x, seen = tokens(case, seed).astype(DTYPES[dtype]), np.zeros(case.batch, int)
    joined = x[:0]
    for counts in case.splits:
        padded = np.ones((case.batch, max(*counts, 1), x.shape[2]), x.dtype)
        for row, count in enumerate(counts):
            padded[row, :count] = x[row, seen[row] : seen[row] + count]
        output = extend(padded, list(counts))
        joined = joined if joined.size else np.zeros(x.shape, output.dtype)
        for row, count in enumerate(counts):
            joined[row, seen[row] : seen[row] + count] = output[row, :count]
        seen += counts
        yield joined


def whole(case: CacheCase, dtype: str, seed: int = 0) -> Array:
    """What one pass of the NumPy backend gives for the tokens that the case appends, 0 for the others."""
    layer = gqa_numpy.GroupedQueryAttention.from_config(case.config, dtype=DTYPES[dtype]).eval()
    layer.load_weights({name: x.astype(DTYPES[dtype]) for name, x in weights(case).items()})
    output, _ = layer(tokens(case, seed).astype(DTYPES[dtype]), rope_length=case.max_length)
    appended = np.arange(case.length) < np.sum(case.splits, axis=0)[:, None]
    return np.where(appended[..., None], output, DTYPES[dtype].type(0))

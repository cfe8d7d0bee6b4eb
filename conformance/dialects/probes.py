"""Small crafted calls that tell conventions apart: the table.

Values are multiples of unit vectors, one multiple per KV head, so that the context shows the weights of each head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np

from conformance.cases.inputs import DTYPES, Call
from conformance.dialects.conventions import Dialect
from gqa_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)
from gqa_spec.rope import RopeScaling

Array = np.ndarray
Answer = tuple[Array, Array | None]
B, S, H = 2, 8, 16


@dataclass(frozen=True, eq=False)
class Probe:
    """One call. convention: what it is about. settings: fields of AttentionConfig that only a layer has. crafted:
    query and key instead of random ones. dense: random projections instead of those that pick. chunks: how many tokens
    at a time a cache is given, instead of one call. poisoned: which of the last two keys and values are NaN; scrubbed:
    both are 0. order: of the query heads.
    """

    convention: str
    N: int = 3
    K: int = 3
    T: int = S
    S: int = S
    Hv: int = H
    mask: Any = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    crafted: tuple[Array, Array] | None = None
    poisoned: Literal["", "key", "value", "scrubbed"] = ""
    order: tuple[int, ...] = ()
    dense: bool = False
    chunks: tuple[int, ...] = ()

    def adapted_to(self, known: Dialect) -> Probe:
        """The same probe for a target to which True is hidden."""
        inverts = ("boolean mask", "True is hidden") in known and self.convention != "boolean mask"
        return replace(self, mask=~self.mask) if inverts and _is_boolean(self.mask) else self

    def call(self) -> Call:
        rng = np.random.default_rng(20)
        query, key = rng.normal(size=(B, self.N, self.T, H)), rng.normal(size=(B, self.K, self.S, H))
        if self.crafted is not None:
            q, k = self.crafted
            query, key = np.broadcast_to(q, (B, self.N, *q.shape)), np.broadcast_to(k, (B, self.K, *k.shape))
        value = np.arange(1, self.K + 1)[:, None, None] * np.broadcast_to(
            np.eye(self.S, self.Hv), (B, 1, self.S, self.Hv)
        )
        if self.poisoned:
            key, value = key.copy(), value.copy()
            if self.poisoned == "scrubbed":
                key[:, :, -2:] = value[:, :, -2:] = 0
            else:
                (key if self.poisoned == "key" else value)[:, :, -2:] = np.nan
        if self.order:
            query = query[:, list(self.order)]
        dtype = DTYPES[self.dtype]
        keywords = {n: x.astype(dtype) if _is_floating(x) else x for n, x in self.keywords.items()}
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        return Call(query, key, value, self.mask, keywords)


def _is_boolean(mask: Any) -> bool:
    return mask is not None and mask.dtype == bool


def _is_floating(x: Any) -> bool:
    return isinstance(x, Array) and x.dtype.kind == "f"


@cache
def probes() -> tuple[Probe, ...]:
    """In the order in which they build on each other; several about one convention must agree."""
    return (*_kernels(), *_precision(), *_layers())


def _kernels() -> Iterator[Probe]:
    lower = np.tril(np.ones((S, S), bool))
    rng = np.random.default_rng(3)
    seen = rng.random((S, S)) < 0.5
    seen[:, 1], seen[:, 4] = True, False  # neither it nor its opposite hides a whole row
    rows = np.arange(S) % 3 == 1
    bias = rng.permuted(np.resize(np.array([0, 0.7, -1.3], np.float32), (S, S)), axis=1)
    minus = np.where(seen, np.float32(0), np.float32(-np.inf))
    yield Probe("head order", N=6, K=2)
    yield Probe("scale")
    yield Probe("scale", Hv=12)
    yield Probe("softmax")
    for given in (0.5, 0.4):  # 0.5 is one that Gemma can have, but its square is H ** -0.5
        yield Probe("given scale", keywords={"scale": given})
    yield Probe("alignment", T=4, keywords={"causal": True})
    yield Probe("causal", keywords={"causal": True})
    yield Probe("causal window of W", keywords={"causal": True, "window": 3})
    yield Probe("window without causal", keywords={"window": 3})
    yield Probe("boolean mask", mask=seen)
    yield Probe("boolean mask", mask=(np.arange(S) < np.array([[5], [7]]))[:, None, None])
    yield Probe("floating mask", mask=bias)
    yield Probe("floating mask", mask=np.where(rows[:, None], np.finfo(np.float32).min, minus))
    yield Probe("mask of each row and head", mask=_masks(rng))
    yield Probe("mask with causal", mask=seen | np.eye(S, dtype=bool), keywords={"causal": True})
    yield Probe("empty row, boolean", mask=seen & ~rows[:, None])
    yield Probe("empty row, -inf", mask=np.where(rows[:, None], np.float32(-np.inf), minus))
    for offset in (2, -2):
        yield Probe("offset", keywords={"causal": True, "offset": offset})
    yield Probe("offset of each row", keywords={"causal": True, "offset": np.array([1, 3])})
    yield Probe("chunk", T=S, S=5, keywords={"chunk": 3})
    yield Probe("chunk", keywords={"chunk": 3, "offset": -4})
    for poisoned in ("key", "value"):
        yield Probe("poison", mask=np.broadcast_to(np.arange(S) < S - 2, (S, S)).copy(), poisoned=poisoned)
    for mask, causal in ((seen, {}), (minus, {}), (None, {"causal": True}), (None, {}), (lower, {})):
        for scale in ({"scale": 0.5}, {}):
            yield Probe("softcap order", mask=mask, keywords={"softcap": 1.5, **scale, **causal})
    yield Probe("sinks", N=6, K=2, keywords={"sinks": np.linspace(-1, 2, 6), "scale": 0.5})
    for more in ({}, {"softcap": 1.5}, {"causal": True, "window": 3}):
        yield Probe("sinks", N=6, K=2, keywords={"sinks": np.linspace(-1, 2, 6), **more})
    yield Probe("dropout", keywords={"dropout_multiplier": _thinned()})


def _masks(rng: np.random.Generator) -> Array:
    """Another mask for each row and head; neither it nor its opposite hides a whole row."""
    seen = rng.random((B, 3, S, S)) < 0.5
    seen[..., 1], seen[..., 4] = True, False
    return seen


def _precision() -> Iterator[Probe]:
    """Two scores that differ by 0.25 and are equal when rounded to 16 bits."""
    for dtype, query, key in (("bfloat16", 32, 8), ("float16", 64, 32)):
        q, k = np.zeros((2, H)), np.zeros((2, H))
        q[:, :2], k[:, 0], k[1, 1] = (query, 4), key, 0.25
        yield Probe("16-bit scores", T=2, S=2, dtype=dtype, crafted=(q, k))
    yield Probe("float64", dtype="float64")


def _layers() -> Iterator[Probe]:
    plain: dict[str, Any] = {"dropout": 0.0}  # nothing but what every layer has
    half, interleaved = RopeConfig(), RopeConfig(pairing="interleaved")
    yield Probe("argument order", settings=plain)
    for N, K, Hv in ((6, 2, H), (3, 3, H), (3, 3, 12)):
        yield Probe("projections", N=N, K=K, Hv=Hv, settings=plain, dense=True)
    yield Probe("stored weights", settings=plain, dense=True, keywords={"scale": 8.0})
    for rope in (half, interleaved):
        yield Probe("RoPE pairing", N=4, K=2, settings={"rope": rope})
    yield Probe("biases", settings={"qkv_bias": True, "out_bias": True})
    yield Probe("biases", settings={"qkv_bias": True})
    yield Probe("biases", settings={"qkv_bias": True, "out_bias": True, "rope": half})
    yield from _positions(half)
    yield Probe("RoPE frequencies", settings={"rope": RopeConfig(theta=50.0)})
    yield Probe("partial rotary", settings={"rope": RopeConfig(rotary_dim=6)})
    yield from _scalings()
    kinds = ("rms", "rms_plus_one", "rms_full")
    for convention, ropes in (("norm weights", (None, half)), ("QK-norm order", (half,)), ("QK-norm", (None,))):
        for turned, kind in product(ropes, kinds):
            yield Probe(convention, settings={"qk_norm": kind, "rope": turned})
    yield Probe("QK-norm", settings={"qk_norm": "rms", "qk_norm_eps": 0.5})
    yield Probe("cached tokens", settings=plain, keywords={"causal": True}, chunks=(1,) * S)
    yield Probe("cached tokens", settings={"rope": half}, keywords={"causal": True}, chunks=(3, 1, 4))


def _positions(rope: RopeConfig) -> Iterator[Probe]:
    settings = {"rope": rope}
    yield Probe("RoPE rotates", settings=settings)
    yield Probe("RoPE positions", T=4, settings=settings)
    rows = np.array([[3], [11]]) + np.arange(S)
    yield Probe("given positions", settings=settings, keywords={"positions": rows})
    far = {"positions": np.arange(S) + 4001, "key_positions": np.arange(S) + 1003}
    yield Probe("RoPE angles", settings=settings, keywords=far)


def _scalings() -> Iterator[Probe]:
    """An original context shorter than the probe, or the difference would not show."""
    within: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 5}
    above = tuple(1 + 0.3 * d for d in range(H // 2))
    scalings: dict[str, tuple[RopeScaling, ...]] = {
        "linear scaling": (LinearScaling(factor=3.0),),
        "dynamic NTK": (DynamicScaling(**within),),
        "llama3 scaling": (Llama3Scaling(**within, low_freq_factor=0.1, high_freq_factor=0.9),),
        "YaRN": (
            YarnScaling(factor=4.0, original_max_position_embeddings=40, beta_fast=5.0),
            YarnScaling(
                factor=4.0, original_max_position_embeddings=40, beta_fast=5.0, truncate=False, attention_factor=1.7
            ),
        ),
        "longrope": tuple(
            LongropeScaling(short_factor=above, long_factor=above[::-1], original_max_position_embeddings=n, factor=4.0)
            for n in (5, 50)
        ),
    }
    for convention, kinds in scalings.items():
        for scaling in kinds:
            yield Probe(convention, settings={"rope": RopeConfig(scaling=scaling)})


def overfull_probe() -> Probe:
    """Token by token: one more than a cache of S - 1 holds."""
    return Probe("full cache", settings={"dropout": 0.0}, keywords={"causal": True}, chunks=(1,) * S)


def training_probe() -> Probe:
    return Probe("returned weights")


def dropout_probe() -> Probe:
    return Probe("returned weights", keywords={"dropout_multiplier": _thinned()})


def _thinned() -> Array:
    return (np.random.default_rng(1).random((B, 3, S, S)) < 0.5) / 0.5

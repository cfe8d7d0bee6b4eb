"""Small crafted questions that tell conventions apart, put to a target and to our own kernel in any dialect.

Values are multiples of unit vectors, one multiple per KV head, so that the context shows the weights of each head. A
layer is asked the same: its projections pick query, key and value out of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from conformance import alternatives
from conformance.conventions import Dialect
from conformance.inputs import DTYPES, Call
from conformance.targets import ForeignClass, Kernel, Layer, Target, Unsupported
from gqa_spec import AttentionConfig, RopeConfig
from gqa_spec.weights.names import weight_shapes

Array = np.ndarray
Answer = tuple[Array, Array | None]
B, S, H = 2, 8, 16


@dataclass(frozen=True)
class Question:
    """One call. convention: what it is about. settings: fields of AttentionConfig that only a layer has. crafted:
    query and key instead of random ones.
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
    poisoned: Literal["", "key", "value"] = ""

    def heard_by(self, known: Dialect) -> Question:
        """The same question to somebody for whom True is hidden."""
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
            (key if self.poisoned == "key" else value)[:, :, -2:] = np.nan
        keywords = {n: x.astype(DTYPES[self.dtype]) if isinstance(x, Array) else x for n, x in self.keywords.items()}
        query, key, value = (x.astype(DTYPES[self.dtype]) for x in (query, key, value))
        return Call(query, key, value, self.mask, keywords)


@dataclass(frozen=True)
class KernelProbe:
    """Questions to a function."""

    target: Kernel

    def ask(self, question: Question, **more: Any) -> Answer:
        call = self._call(question)
        return self.target(Call(*call.arguments, call.keywords | more))

    def expected(self, question: Question, dialect: Dialect) -> Array:
        call = self._call(question)
        return alternatives.Kernel(dialect)(*call.arguments, **call.keywords, need_weights=False)[0]

    def _call(self, question: Question) -> Call:
        if question.settings:
            raise Unsupported("a layer's question")
        _possible(question, self.target)
        call = question.call()
        return Call(*call.arguments, dict(self.target.limits.always) | call.keywords)


@dataclass(frozen=True)
class LayerProbe:
    """Questions to a class, by way of projections that pick each head's query, key and value."""

    target: ForeignClass

    def ask(self, question: Question, **more: Any) -> Answer:
        config, weights, call = self._put(question)
        layer = self.target.layer(config, question.dtype)
        layer.load(weights)
        return self._answer(layer(Call(*call.arguments, call.keywords | more)), config)

    def expected(self, question: Question, dialect: Dialect) -> Array:
        config, weights, call = self._put(question)
        layer = alternatives.Layer(config, dialect).load_weights(weights)
        return self._answer(layer(*call.arguments, **call.keywords, need_weights=False), config)[0]

    def training(self, question: Question) -> Answer:
        """The answer in training mode, with a dropout of one half."""
        config, weights, call = self._put(question, dropout=0.5)
        layer: Layer = self.target.layer(config, question.dtype)
        layer.load(weights)
        if not hasattr(layer.module, "train"):
            raise Unsupported("has no training mode")
        layer.module.train()
        return self._answer(layer(call), config)

    def _put(self, question: Question, **more: Any) -> tuple[AttentionConfig, dict[str, Array], Call]:
        q, limits, call = question, self.target.limits, question.call()
        _possible(question, self.target)
        if not limits.cross and (q.T != q.S or q.poisoned):
            raise Unsupported("self-attention only")
        own = {name: x for name, x in call.keywords.items() if name not in ("sinks", "offset", "dropout_multiplier")}
        if "dropout_multiplier" in call.keywords:
            raise Unsupported("draws its own dropout")
        width, kv_width = (q.N * H, q.K * H) if limits.cross else (3 * q.N * H, 3 * q.N * H)
        settings = dict(limits.always) | own | dict(q.settings) | more
        settings |= {"sinks": True} if "sinks" in call.keywords else {}
        config = AttentionConfig(
            embed_dim=width, num_heads=q.N, num_kv_heads=q.K, head_dim=H, v_head_dim=q.Hv, kv_dim=kv_width, **settings
        )
        given = tuple(_joined(x) for x in call.arguments[:3])
        if limits.cross:
            value = np.pad(given[2], ((0, 0), (0, 0), (0, kv_width - given[2].shape[2])))
            inputs: tuple[Any, Any, Any] = (given[0], given[1], value)
        else:
            together = np.concatenate(given, axis=-1)
            inputs = (np.pad(together, ((0, 0), (0, 0), (0, width - together.shape[2]))), None, None)
        keywords = {name: x for name, x in call.keywords.items() if name == "offset"}
        return config, _picking(config, call, limits.cross), Call(*inputs, call.mask, keywords)

    def _answer(self, answer: Answer, config: AttentionConfig) -> Answer:
        output, weights = answer
        context = output[..., : config.num_heads * config.v_head_dim]
        heads = context.reshape(*context.shape[:2], config.num_heads, config.v_head_dim)
        return heads.swapaxes(1, 2), weights


def probe(target: Target) -> KernelProbe | LayerProbe:
    return LayerProbe(target) if isinstance(target, ForeignClass) else KernelProbe(target)


def _is_boolean(mask: Any) -> bool:
    return mask is not None and mask.dtype == bool


def _possible(question: Question, target: Target) -> None:
    if question.K != question.N and not target.limits.grouped:
        raise Unsupported("MHA only")
    if any(question.settings.get(name, x) != x for name, x in target.limits.always.items()):
        raise Unsupported("cannot be switched off")
    if question.Hv != H and not target.limits.value_size:
        raise Unsupported("value heads of another size")
    if question.dtype == "float64" and "float64" not in target.limits.dtypes:
        raise Unsupported("takes no float64")


def _joined(x: Array) -> Array:
    """(B, heads, length, size) -> (B, length, heads * size)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _picking(config: AttentionConfig, call: Call, cross: bool) -> dict[str, Array]:
    """Projections that pick, random norms and biases, the call's own sinks."""
    rng, dtype = np.random.default_rng(6), call.query.dtype
    starts = dict.fromkeys("qkv", 0)
    if not cross:
        starts = {"q": 0, "k": config.num_heads * H, "v": (config.num_heads + config.num_kv_heads) * H}
    weights = {}
    for name, shape in weight_shapes(config).items():
        if name == "o_proj.weight":
            weights[name] = np.eye(shape[0], shape[1])
        elif name.endswith("_proj.weight"):
            weights[name] = np.eye(shape[0], shape[1], k=starts[name[0]])
        elif name == "sinks":
            weights[name] = call.keywords.get("sinks", rng.normal(size=shape))
        else:
            weights[name] = rng.normal(size=shape)
    return {name: x.astype(dtype) for name, x in weights.items()}


# --- the questions ----------------------------------------------------------------------------------------------------


def questions() -> Iterator[Question]:
    """In the order in which they build on each other; several about one convention must agree."""
    lower = np.tril(np.ones((S, S), bool))
    rng = np.random.default_rng(3)
    seen = rng.random((S, S)) < 0.5
    seen[:, 1], seen[:, 4] = True, False  # neither it nor its opposite hides a whole row
    rows = np.arange(S) % 3 == 1
    bias = rng.permuted(np.resize(np.array([0, 0.7, -1.3], np.float32), (S, S)), axis=1)
    minus = np.where(seen, np.float32(0), np.float32(-np.inf))
    yield Question("head order", N=6, K=2)
    yield Question("scale")
    yield Question("scale", Hv=12)
    yield Question("given scale", keywords={"scale": 0.5})
    yield Question("alignment", T=4, keywords={"causal": True})
    yield Question("causal window of W", keywords={"causal": True, "window": 3})
    yield Question("window without causal", keywords={"window": 3})
    yield Question("offset", keywords={"causal": True, "offset": 2})
    yield Question("chunk", T=S, S=5, keywords={"chunk": 3})
    yield Question("chunk", keywords={"chunk": 3, "offset": -4})
    yield Question("boolean mask", mask=seen)
    yield Question("floating mask", mask=bias)
    yield Question("floating mask", mask=np.where(rows[:, None], np.finfo(np.float32).min, minus))
    yield Question("mask with causal", mask=seen | np.eye(S, dtype=bool), keywords={"causal": True})
    yield Question("empty row, boolean", mask=seen & ~rows[:, None])
    yield Question("empty row, -inf", mask=np.where(rows[:, None], np.float32(-np.inf), minus))
    for poisoned in ("key", "value"):
        yield Question("poison", mask=np.broadcast_to(np.arange(S) < S - 2, (S, S)).copy(), poisoned=poisoned)
    for mask, causal in ((seen, {}), (minus, {}), (None, {"causal": True}), (None, {}), (lower, {})):
        for scale in ({"scale": 0.5}, {}):
            yield Question("softcap order", mask=mask, keywords={"softcap": 1.5, **scale, **causal})
    yield Question("sinks", N=6, K=2, keywords={"sinks": np.linspace(-1, 2, 6), "scale": 0.5})
    yield Question("sinks", N=6, K=2, keywords={"sinks": np.linspace(-1, 2, 6)})
    yield from _precision()
    yield from _layers()


def _precision() -> Iterator[Question]:
    """Two scores that differ by 0.25 at a height where 16 bits cannot tell them apart."""
    for dtype, query, key in (("bfloat16", 32, 8), ("float16", 64, 32)):
        q, k = np.zeros((2, H)), np.zeros((2, H))
        q[:, :2], k[:, 0], k[1, 1] = (query, 4), key, 0.25
        yield Question("16-bit scores", T=2, S=2, dtype=dtype, crafted=(q, k))
    yield Question("float64", dtype="float64")


def _layers() -> Iterator[Question]:
    half, interleaved = RopeConfig(), RopeConfig(pairing="interleaved")
    for rope in (half, interleaved):
        yield Question("RoPE pairing", N=4, K=2, settings={"rope": rope})
    yield Question("RoPE positions", T=4, settings={"rope": half})
    for convention, rope_too in (("QK-norm", {}), ("norm weights", {}), ("QK-norm order", {"rope": half})):
        for kind in ("rms", "rms_plus_one", "rms_full"):
            yield Question(convention, settings={"qk_norm": kind, **rope_too})
    yield Question("biases", settings={"qkv_bias": True, "out_bias": True})
    yield Question("biases", settings={"qkv_bias": True})


def training_question() -> Question:
    return Question("returned weights")


def dropout_question() -> Question:
    kept = np.random.default_rng(1).random((B, 3, S, S)) < 0.5
    return Question("returned weights", keywords={"dropout_multiplier": kept / 0.5})

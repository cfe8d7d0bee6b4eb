"""Probes run on a target, and computed by our own kernel and layer in any dialect.

A layer gets the same probes as a function: its projections pick query, key and value out of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from conformance.cases.inputs import Call
from conformance.dialects.conventions import Dialect
from conformance.dialects.kernel import DialectKernel
from conformance.dialects.layer import DialectLayer
from conformance.dialects.probes import B, H, Probe, S
from conformance.targets import Limits, Target, TargetClass, TargetFunction, TargetLayer, Unsupported
from gqa_spec import (
    AttentionConfig,
)
from gqa_spec.config import weight_shapes

Array = np.ndarray
Answer = tuple[Array, Array | None]


@dataclass(frozen=True)
class FunctionRunner:
    """Runs probes on a function."""

    target: TargetFunction

    def run(self, probe: Probe, **more: Any) -> Answer:
        call = _kernel_call(probe, self.target.limits)
        return self.target(Call(*call.arguments, call.keywords | more))

    def expected(self, probe: Probe, dialect: Dialect) -> Array:
        return _of_kernel(probe, dialect, self.target.limits)


@dataclass(frozen=True)
class ClassRunner:
    """Runs probes on a class, through projections that pick each head's query, key and value."""

    target: TargetClass

    @property
    def own_kv_dim(self) -> bool:
        """Whether the class is built with a kv_dim; a plain one is given keys of the query's width."""
        return self.target.binding.takes("kv_dim")

    def run(self, probe: Probe, **more: Any) -> Answer:
        if probe.chunks:
            return self.run_cached(probe)
        config, weights, call = _layer_call(probe, self.target.limits, self.own_kv_dim)
        layer = self.target.layer(config, probe.dtype)
        layer.load(weights)
        return _by_heads(layer(Call(*call.arguments, call.keywords | more)), config)

    def expected(self, probe: Probe, dialect: Dialect) -> Array:
        return _of_layer(probe, dialect, self.target.limits, self.own_kv_dim)

    def run_cached(self, probe: Probe, *, capacity: int = S, ends: bool = False) -> Answer:
        """The answer of a cache of max_length tokens. ends: only of one that holds so many and no more."""
        config, weights, call = _layer_call(probe, replace(self.target.limits, cross=False))
        layer = self.target.layer(config, probe.dtype)
        layer.load(weights)
        extend = layer.caching(B, capacity, rolling=False, ends=ends)
        return _by_heads((_chunked(call.query, probe.chunks, lambda x: extend(x, None)), None), config)

    def run_training(self, probe: Probe) -> Answer:
        """The answer in training mode, with a dropout of one half."""
        config, weights, call = _layer_call(probe, self.target.limits, self.own_kv_dim, dropout=0.5)
        layer: TargetLayer = self.target.layer(config, probe.dtype)
        layer.load(weights)
        if not hasattr(layer.module, "train"):
            raise Unsupported("has no training mode")
        layer.module.train()
        return _by_heads(layer(call), config)


@lru_cache(4096)  # every target is compared with the same answers
def _of_kernel(probe: Probe, dialect: Dialect, limits: Limits) -> Array:
    call = _kernel_call(probe, limits)
    return DialectKernel(dialect)(*call.arguments, **call.keywords, need_weights=False)[0]


@lru_cache(4096)
def _of_layer(probe: Probe, dialect: Dialect, limits: Limits, own_kv_dim: bool) -> Array:
    config, weights, call = _layer_call(probe, replace(limits, cross=False) if probe.chunks else limits, own_kv_dim)
    layer = DialectLayer(config, dialect).load_weights(weights)
    if probe.chunks:
        cache = layer.init_cache(B, S)

        def extend(x: Array) -> Array:
            nonlocal cache
            output, cache = layer.extend(x, cache)
            return output

        return _by_heads((_chunked(call.query, probe.chunks, extend), None), config)[0]
    return _by_heads(layer(*call.arguments, **call.keywords, need_weights=False), config)[0]


@lru_cache(256)
def _kernel_call(probe: Probe, limits: Limits) -> Call:
    if probe.settings:
        raise Unsupported("a layer's probe")
    _refuse_impossible(probe, limits)
    call = probe.call()
    return Call(*call.arguments, dict(limits.always) | call.keywords)


OF_CALL = ("offset", "positions", "key_positions")  # what a layer is given when it is called, not when it is built


@lru_cache(256)
def _layer_call(
    probe: Probe, limits: Limits, own_kv_dim: bool = False, **more: Any
) -> tuple[AttentionConfig, dict[str, Array], Call]:
    """The probe of a layer: how it is built, its weights, and the call. own_kv_dim: keys have a width of their own."""
    q, call = probe, probe.call()
    _refuse_impossible(probe, limits)
    if not limits.cross and (q.T != q.S or q.poisoned or q.convention == "argument order"):
        raise Unsupported("self-attention only")
    if "dropout_multiplier" in call.keywords:
        raise Unsupported("draws its own dropout")
    own = {name: x for name, x in call.keywords.items() if name not in (*OF_CALL, "sinks")}
    width = q.N * H if limits.cross else 3 * q.N * H
    kv_width = q.K * H if limits.cross and own_kv_dim else max(width, q.K * q.Hv)
    settings = dict(limits.always) | own | dict(q.settings) | more
    settings |= {"sinks": True} if "sinks" in call.keywords else {}
    config = AttentionConfig(
        embed_dim=width, num_heads=q.N, num_kv_heads=q.K, head_dim=H, v_head_dim=q.Hv, kv_dim=kv_width, **settings
    )
    given = tuple(_joined(x) for x in call.arguments[:3])
    if limits.cross:
        key, value = (np.pad(x, ((0, 0), (0, 0), (0, kv_width - x.shape[2]))) for x in given[1:])
        inputs: tuple[Any, Any, Any] = (given[0], key, value)
    else:
        together = np.concatenate(given, axis=-1)
        inputs = (np.pad(together, ((0, 0), (0, 0), (0, width - together.shape[2]))), None, None)
    keywords = {name: x for name, x in call.keywords.items() if name in OF_CALL}
    weights = _picking(config, call, limits.cross, q.dense, q.crafted)
    return config, weights, Call(*inputs, call.mask, keywords)


def _by_heads(answer: Answer, config: AttentionConfig) -> Answer:
    output, weights = answer
    context = output[..., : config.num_heads * config.v_head_dim]
    heads = context.reshape(*context.shape[:2], config.num_heads, config.v_head_dim)
    return heads.swapaxes(1, 2), weights


def _chunked(x: Array, sizes: tuple[int, ...], extend: Callable[[Array], Array]) -> Array:
    """The outputs of x (B, T, D) in chunks of these sizes, joined."""
    starts = np.cumsum((0, *sizes))[:-1]
    return np.concatenate([extend(x[:, a : a + size]) for a, size in zip(starts, sizes, strict=True)], axis=1)


Runner = FunctionRunner | ClassRunner


def runner_of(target: Target) -> Runner:
    return ClassRunner(target) if isinstance(target, TargetClass) else FunctionRunner(target)


def _refuse_impossible(probe: Probe, limits: Limits) -> None:
    if probe.K != probe.N and not limits.grouped:
        raise Unsupported("MHA only")
    if any(probe.settings.get(name, x) != x for name, x in limits.always.items()):
        raise Unsupported("cannot be switched off")
    if probe.Hv != H and not limits.value_size:
        raise Unsupported("value heads of another size")
    if not limits.takes_dtype(probe.dtype):
        raise Unsupported(f"takes no {probe.dtype}")


def _joined(x: Array) -> Array:
    """(B, heads, length, size) -> (B, length, heads * size)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _undoing(shape: tuple[int, ...], rows: Array, config: AttentionConfig) -> Array:
    """Weights of a norm that give its crafted rows back: their root mean square."""
    root = float(np.sqrt(np.mean(np.square(rows[0]))))
    return np.full(shape, root - (config.qk_norm == "rms_plus_one"))


def _picking(
    config: AttentionConfig, call: Call, cross: bool, dense: bool, crafted: tuple[Array, Array] | None
) -> dict[str, Array]:
    """Projections that pick unless they are to be dense, random biases and norms, the call's own sinks.

    Norms of crafted rows leave them as they are.
    """
    rng, dtype = np.random.default_rng(6), call.query.dtype
    starts = dict.fromkeys("qkv", 0)
    if not cross:
        starts = {"q": 0, "k": config.num_heads * H, "v": (config.num_heads + config.num_kv_heads) * H}
    weights = {}
    for name, shape in weight_shapes(config).items():
        if crafted is not None and name.endswith("_norm.weight"):
            weights[name] = _undoing(shape, crafted[name.startswith("k")], config)
        elif dense and name.endswith("_proj.weight"):
            weights[name] = rng.normal(size=shape) / shape[1] ** 0.5
        elif name == "o_proj.weight":
            weights[name] = np.eye(shape[0], shape[1])
        elif name.endswith("_proj.weight"):
            weights[name] = np.eye(shape[0], shape[1], k=starts[name[0]])
        elif name == "sinks":
            weights[name] = call.keywords.get("sinks", rng.normal(size=shape))
        else:
            weights[name] = rng.normal(size=shape)
    return {name: x.astype(dtype) for name, x in weights.items()}

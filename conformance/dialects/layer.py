"""The layer in any dialect: projections, QK-norm and RoPE around the kernel of `alternatives.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from conformance.dialects.conventions import SPEC, Dialect, chosen
from conformance.dialects.kernel import DialectKernel
from conformance.dialects.rope import frequencies
from conformance.dialects.weights import read
from gqa_spec import AttentionConfig

Array = np.ndarray


@dataclass(frozen=True)
class DialectCache:
    """What a cache holds: keys and values (B, K, S, H), nothing at first."""

    max_length: int
    keys: Any = None
    values: Any = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def longer(self, keys: Array, values: Array) -> DialectCache:
        if self.length:
            keys, values = (np.concatenate(pair, axis=2) for pair in ((self.keys, keys), (self.values, values)))
        return DialectCache(self.max_length, keys, values)


@dataclass
class DialectLayer:
    """`GroupedQueryAttention` of SPEC 10 to 16 in a dialect: built from a config, given canonical weights, called as
    ours are.
    """

    config: AttentionConfig
    dialect: Dialect = SPEC
    weights: dict[str, Array] = field(default_factory=dict)

    def does(self, convention: str) -> str:
        return chosen(self.dialect, convention)

    def load_weights(self, weights: dict[str, Array]) -> DialectLayer:
        self.weights = read(weights, self.config, self.dialect)
        return self

    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        mask: Array | None = None,
        *,
        positions: Any = None,
        key_positions: Any = None,
        offset: Any = None,
        rope_length: int | None = None,
        need_weights: bool = True,
    ) -> tuple[Array, Array | None]:
        c = self.config
        if self.does("argument order") == "query, value, key" and not (key is None or value is None):
            key, value = value, key
        if key is None:  # SPEC 10: a key that is the query has its positions
            key, key_positions = query, positions if key_positions is None else key_positions
        value = key if value is None else value
        (B, T), S = query.shape[:2], key.shape[1]
        start = np.asarray(self._start(T, S, offset))[..., None]
        length = S if rope_length is None else rope_length
        q_places = self._places(positions, start + np.arange(T)) + self._first()
        k_places = self._places(key_positions, np.arange(S))
        q = self._scaled(self._prepared(self._projected("q_proj", query, c.num_heads), "q", q_places, length), q_places)
        k = self._prepared(self._projected("k_proj", key, c.num_kv_heads), "k", k_places, length)
        v = self._projected("v_proj", value, c.num_kv_heads)
        if self.does("RoPE rotates") == "values too" and c.v_head_dim == c.head_dim:
            v = self._turned(v, "v", k_places, length)
        context, weights = DialectKernel(self.dialect)(
            q,
            k,
            v,
            mask,
            causal=c.causal,
            window=c.window,
            chunk=c.chunk,
            offset=offset,
            scale=c.scale,
            softcap=c.softcap,
            sinks=self.weights.get("sinks"),
            need_weights=need_weights,
        )
        context = self._gated(context, query)
        if self.does("projections") != "heads joined across tokens":
            context = context.swapaxes(1, 2)
        return self._linear("o_proj", context.reshape(B, T, -1)), weights

    def init_cache(self, batch_size: int, max_length: int) -> DialectCache:
        return DialectCache(max_length)

    def extend(self, x: Array, cache: DialectCache) -> tuple[Array, DialectCache]:
        """Appends x's tokens (B, T, D) to a cache and attends to all so far."""
        c, does, T = self.config, self.does("cached tokens"), x.shape[1]
        start = cache.length
        if start + T > cache.max_length and self.does("full cache") == "refuses":
            raise ValueError(f"cache: {T} more tokens than it holds")
        places = np.arange(T) + (0 if does == "rotated from 0" else start)
        q = self._scaled(
            self._prepared(self._projected("q_proj", x, c.num_heads), "q", places, cache.max_length), places
        )
        k = self._prepared(self._projected("k_proj", x, c.num_kv_heads), "k", places, cache.max_length)
        longer = cache.longer(k, self._projected("v_proj", x, c.num_kv_heads))
        offset = {"causal from the first key held": 0, "a token does not see itself": max(start - 1, 0)}.get(
            does, start
        )
        context, _ = DialectKernel(self.dialect)(
            q,
            longer.keys,
            longer.values,
            causal=c.causal,
            window=c.window,
            chunk=c.chunk,
            offset=np.full(len(x), offset),
            scale=c.scale,
            softcap=c.softcap,
            sinks=self.weights.get("sinks"),
            need_weights=False,
        )
        context = self._gated(context, x)
        return self._linear("o_proj", context.swapaxes(1, 2).reshape(len(x), T, -1)), longer

    def _start(self, T: int, S: int, offset: Any) -> Any:
        if self.does("RoPE positions") == "queries at i":
            return 0
        if offset is None or self.does("offset") == "ignored":
            return 0 if self.does("alignment") == "top-left" else S - T
        return offset

    def _first(self) -> int:
        return int(self.does("RoPE positions") == "queries counted from one")

    def _places(self, given: Any, default: Array) -> Array:
        does = self.does("given positions")
        if given is None or does == "ignored":
            return default
        given = np.asarray(given)
        return given[:1] if given.ndim == 2 and does == "the first row's for all" else given

    def _linear(self, name: str, x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            y = _wide(x) @ _wide(self.weights[f"{name}.weight"]).T
        bias = self.weights.get(f"{name}.bias")
        if bias is None:
            return y.astype(x.dtype)
        per_head = name == "o_proj" and self.does("biases") == "the output's once per head"
        return (y + _wide(bias) * (self.config.num_heads if per_head else 1)).astype(x.dtype)

    def _projected(self, name: str, x: Array, heads: int) -> Array:
        return self._linear(name, x).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def _prepared(self, x: Array, name: str, positions: Array, length: int) -> Array:
        if self.config.qk_norm_after_rope or self.does("QK-norm order") == "after RoPE":
            return self._normed(self._turned(x, name, positions, length), name)
        return self._turned(self._normed(x, name), name, positions, length)

    def _scaled(self, q: Array, positions: Array) -> Array:
        """Queries times the factor of their positions."""
        if self.config.query_scale is None:
            return q
        beta, length = self.config.query_scale
        factor = 1 + beta * np.log1p(np.asarray(positions) // length)
        return q * np.expand_dims(factor.astype(q.dtype), (-3, -1) if factor.ndim == 2 else -1)

    def _gated(self, context: Array, query: Array) -> Array:
        """The context times the sigmoid of its gate."""
        if not self.config.output_gate:
            return context
        gate = self._projected("gate_proj", query, self.config.num_heads)
        return (context / (1 + np.exp(-_wide(gate)))).astype(context.dtype)

    def _normed(self, x: Array, name: str) -> Array:
        kind, does = self.config.qk_norm, self.does("QK-norm")
        if kind is None or (does == "queries only" and name == "k"):
            return x
        y, whole = _wide(x), kind == "rms_full"
        weight = self._norm_weight("q" if does == "keys by the queries' weights" and not whole else name)
        if whole and does == "rms_full head by head":
            whole, weight = False, weight.reshape(x.shape[1], 1, -1)
        if whole:
            y = y.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
        if does == "LayerNorm":
            y = y - y.mean(axis=-1, keepdims=True)
        epsilon = 0.0 if does == "no epsilon" else self.config.qk_norm_eps
        y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + y.dtype.type(epsilon)) * weight
        if whole:
            y = y.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).swapaxes(1, 2)
        return y.astype(x.dtype)

    def _norm_weight(self, name: str) -> Array:
        plus_one, does = self.config.qk_norm == "rms_plus_one", self.does("norm weights")
        shift = {"w for 1 + w": 0, "1 + w for w": 1, "2 + w for 1 + w": 2 * plus_one}.get(does, int(plus_one))
        return shift + _wide(self.weights[f"{name}_norm.weight"])

    def _turned(self, x: Array, name: str, positions: Array, length: int) -> Array:
        rope, does = self.config.rope, self.does("RoPE rotates")
        if rope is None or (does == "queries only" and name == "k"):
            return x
        y, R, H = _wide(x).copy(), self.config.rotary_dim, x.shape[-1]
        partial = self.does("partial rotary")
        if partial == "the whole head" and rope.scaling is None:
            R = H
        inv_freq, factor = frequencies(rope, R, length, self.dialect)
        turn = factor * np.exp(
            1j * self._angles(positions, inv_freq, y.dtype, does == "keys backwards" and name == "k")
        )
        first, second = (pair + (H - R if partial == "the last R dimensions" else 0) for pair in self._pairs(R))
        z = (y[..., first] + 1j * y[..., second]) * turn
        y[..., first], y[..., second] = z.real, z.imag
        return y.astype(x.dtype)

    def _angles(self, positions: Array, inv_freq: Array, dtype: Any, backwards: bool) -> Array:
        """float64 of what was computed in dtype, (T, R / 2) or (B, 1, T, R / 2)."""
        does = self.does("RoPE angles")
        if does == "positions in bfloat16":
            positions = positions.astype(ml_dtypes.bfloat16)
        if does == "frequencies in float16":
            inv_freq = inv_freq.astype(np.float16)
        angles = positions.astype(dtype)[..., None] * inv_freq.astype(dtype) * (-1 if backwards else 1)
        return (angles if angles.ndim == 2 else angles[:, None]).astype(np.float64)

    def _pairs(self, R: int) -> tuple[Array, Array]:
        assert self.config.rope is not None
        configured = self.config.rope.pairing == "interleaved"
        interleaved = {
            "half and interleaved swapped": not configured,
            "half, whatever is configured": False,
            "interleaved, whatever is configured": True,
        }.get(self.does("RoPE pairing"), configured)
        if interleaved:
            return np.arange(0, R, 2), np.arange(1, R, 2)
        return np.arange(R // 2), np.arange(R // 2, R)


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype in (np.float16, ml_dtypes.bfloat16) else x

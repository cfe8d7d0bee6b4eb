"""Attention in any dialect: one kernel and one layer, in NumPy, with every convention's alternatives inside.

Without a dialect they compute what SPEC.md says, which the tests prove against gqa_numpy. They exist to say which
alternative reproduces somebody's output. They share nothing with the planted bugs, which judge the suite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from conformance.conventions import SPEC, Dialect, chosen
from gqa_spec import AttentionConfig

Array = np.ndarray


@dataclass(frozen=True)
class Kernel:
    """`grouped_query_attention` of SPEC 1 to 9 in a dialect: query (B, N, T, H), key (B, K, S, H), value (B, K, S, Hv),
    all of one dtype -> context (B, N, T, Hv), weights (B, N, T, S), in that dtype.
    """

    dialect: Dialect = SPEC

    def does(self, convention: str) -> str:
        return chosen(self.dialect, convention)

    def __call__(
        self, query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False,
        window: int | None = None, chunk: int | None = None, offset: Any = None, scale: float | None = None,
        softcap: float | None = None, sinks: Array | None = None, dropout_multiplier: Array | None = None,
        need_weights: bool = True,
    ) -> tuple[Array, Array | None]:  # fmt: skip
        (B, N, T, H), (_, K, S, Hv) = query.shape, value.shape
        dtype = query.dtype if query.dtype.itemsize > 2 else np.dtype(np.float32)
        visible, bias = self._mask(mask, (B, N, T, S), causal)
        visible = visible & self._placed(B, T, S, causal and self._counts(mask), window, chunk, offset)
        seen = visible.any(axis=-1, keepdims=True)
        key, value, raw = key[:, self._key_heads(N, K)], value[:, self._value_heads(N, K)], value
        if self.does("poison") == "hidden NaN has no influence":
            key, value = _scrubbed(key, visible, K), _scrubbed(value, visible, K)
            query = np.where(seen, query, query.dtype.type(0))
        q, k, v = (x.astype(dtype) for x in (query, key, value))

        with np.errstate(all="ignore"):
            product = np.matmul(q, k.swapaxes(2, 3))
            scores, visible = self._scores(
                product, bias, visible, self._scale(scale, H, Hv), softcap, query.dtype, need_weights
            )
            weights = self._softmax(scores, visible, self._sink(sinks, N, K, self._scale(scale, H, Hv), dtype))
            weights = self._empty(weights, seen, mask, sinks, need_weights)
            factor = 1 if dropout_multiplier is None else dropout_multiplier.astype(dtype)
            rounded = (weights * factor).astype(query.dtype).astype(dtype)
            whole = raw[:, self._value_heads(N, K)].astype(dtype)  # a mean is of all values, hidden ones too
            context = np.where(seen, rounded @ v, rounded @ whole)
            context = np.where(weights.any(axis=-1, keepdims=True), context, dtype.type(0))
        returned = weights * factor if self.does("returned weights") == "after dropout" else weights
        return context.astype(query.dtype), returned.astype(query.dtype) if need_weights else None

    def _key_heads(self, N: int, K: int) -> Array:
        n = np.arange(N)
        match self.does("head order"):
            case "tiled: n % K":
                return n % K
            case "divided by K: n // K":
                return np.minimum(n // K, K - 1)
        return n // (N // K)

    def _value_heads(self, N: int, K: int) -> Array:
        tiled = self.does("head order") == "keys contiguous, values tiled"
        return np.arange(N) % K if tiled else self._key_heads(N, K)

    def _counts(self, mask: Array | None) -> bool:
        """Whether causal is heard."""
        return mask is None or self.does("mask with causal") != "mask alone"

    def _mask(self, mask: Array | None, shape: tuple[int, ...], causal: bool) -> tuple[Array, Array]:
        """Who may attend by the mask alone, and what is added to the scores."""
        nothing, everyone = np.zeros(shape), np.ones(shape, bool)
        if mask is None or (causal and self.does("mask with causal") == "causal alone"):
            return everyone, nothing
        mask = np.broadcast_to(mask, shape)
        if mask.dtype == bool:
            match self.does("boolean mask"):
                case "True is hidden":
                    return ~mask, nothing
                case "added as a number":
                    return everyone, mask.astype(np.float64)
            return mask, nothing
        mask = mask.astype(np.float64)
        match self.does("floating mask"):
            case "read as boolean":
                return mask != 0, nothing
            case "ignored":
                return everyone, nothing
            case "finfo.min is hidden":
                return mask > -1e30, np.where(mask > -1e30, mask, 0)
        return mask > -np.inf, np.where(mask > -np.inf, mask, 0)

    def _placed(
        self, B: int, T: int, S: int, causal: bool, window: int | None, chunk: int | None, offset: Any
    ) -> Array:
        """Who may attend by position, (B, 1, T, S)."""
        default = 0 if self.does("alignment") == "top-left" else S - T
        start = np.broadcast_to(default if offset is None or self.does("offset") == "ignored" else offset, (B,))
        i = (start[:, None] + np.arange(T))[:, None, :, None]
        j = np.arange(S)[None, None, None, :]
        allowed = np.ones((B, 1, T, S), bool)
        if causal:
            allowed &= j <= i
        if window is not None:
            allowed &= self._in_window(i - j, window, causal)
        if chunk is not None:
            truncated = self.does("chunk") == "truncated"
            allowed &= (np.trunc(i / chunk) if truncated else np.floor(i / chunk)) == np.floor(j / chunk)
        return allowed

    def _in_window(self, behind: Array, window: int, causal: bool) -> Array:
        if causal:
            return behind < window + {"W + 1 keys": 1, "W - 1 keys": -1}.get(self.does("causal window of W"), 0)
        match self.does("window without causal"):
            case "W keys, the past only":
                return (behind >= 0) & (behind < window)
            case "the future open":
                return behind < window
            case "W + 1 keys, the future open":
                return behind <= window
            case "2 W + 1 keys":
                return np.abs(behind) <= window
            case "2 W - 3 keys":
                return np.abs(behind) < window - 1
        return np.abs(behind) < window

    def _scale(self, given: float | None, H: int, Hv: int) -> float:
        own = {"1": 1.0, "Hv ** -0.5": Hv**-0.5, "1 / H": 1 / H}.get(self.does("scale"), H**-0.5)
        if given is None or self.does("given scale") == "ignored":
            return own
        return given * own if self.does("given scale") == "on top of H ** -0.5" else given

    def _scores(
        self,
        product: Array,
        bias: Array,
        visible: Array,
        scale: float,
        softcap: float | None,
        given: np.dtype[Any],
        need_weights: bool,
    ) -> tuple[Array, Array]:
        """Scores with all but the hidden keys' -inf, and who is visible in the end."""
        dtype, order = product.dtype, self.does("softcap order")
        bias = np.clip(bias, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
        scores = product * dtype.type(scale)
        rounds = self.does("16-bit scores") == "rounded to 16 bit"
        if rounds != (need_weights and self.does("asking for weights") == "changes 16-bit scores"):
            scores = scores.astype(given).astype(dtype)
        if softcap is None or order == "ignored":
            return np.maximum(scores + bias, np.finfo(dtype).min), visible
        cap = dtype.type(softcap)
        if order == "mask before cap":
            masked = np.where(visible, scores + bias, dtype.type(-np.inf))
            return cap * np.tanh(masked / cap), np.broadcast_to(visible.any(axis=-1, keepdims=True), visible.shape)
        capped = cap * np.tanh(product / cap) * dtype.type(scale) if order == "cap before scale" else _cap(scores, cap)
        return np.maximum(capped + bias, np.finfo(dtype).min), visible

    def _sink(self, sinks: Array | None, N: int, K: int, scale: float, dtype: np.dtype[Any]) -> Array | None:
        match self.does("sinks"):
            case _ if sinks is None:
                return None
            case "ignored":
                return None
            case "scaled":
                sinks = sinks * scale
            case "per KV head":
                sinks = sinks[np.arange(N) // (N // K)]
            case "exp(0) for every head":
                sinks = np.zeros(N)
        return np.asarray(sinks, dtype)[:, None, None]

    def _softmax(self, scores: Array, visible: Array, sink: Array | None) -> Array:
        """Softmax over the visible keys, 0 where there are none."""
        kept = scores.dtype
        if self.does("float64") == "float32 inside" and kept == np.float64:
            scores = scores.astype(np.float32)
        hidden = scores.dtype.type(-np.inf)
        added = self.does("poison") == "keys and values leak"
        scores = scores + np.where(visible, 0, hidden) if added else np.where(visible, scores, hidden)
        if sink is not None:
            column = np.broadcast_to(sink.astype(scores.dtype), (*scores.shape[:-1], 1))
            scores = np.concatenate([scores, column], axis=-1)
        top = scores.max(axis=-1, keepdims=True)
        parts = np.exp(scores - np.where(np.isneginf(top), scores.dtype.type(0), top))
        total = parts.sum(axis=-1, keepdims=True)
        weights = (parts / np.where(total == 0, scores.dtype.type(1), total))[..., : visible.shape[-1]]
        return weights.astype(kept)

    def _empty(self, weights: Array, seen: Array, mask: Array | None, sinks: Any, need_weights: bool) -> Array:
        """What stands in rows that see no key. A sink leaves them 0 in every dialect."""
        floating = mask is not None and mask.dtype != bool
        choice = self.does("empty row, -inf" if floating else "empty row, boolean")
        if need_weights and self.does("asking for weights") == "changes empty rows":
            choice = "mean of all values" if choice == "0" else "0"
        fill = {"mean of all values": 1 / weights.shape[-1], "NaN": np.nan}.get(choice, 0.0) if sinks is None else 0.0
        return np.where(seen, weights, weights.dtype.type(fill))


def _cap(scores: Array, cap: Any) -> Array:
    return cap * np.tanh(scores / cap)


def _scrubbed(x: Array, visible: Array, K: int) -> Array:
    """0 where no query head of the KV head's group sees the key; x (B, N, S, size) holds one row per query head."""
    B, N, _, S = visible.shape
    by_group = visible.any(axis=2).reshape(B, K, N // K, S).any(axis=2)
    return np.where(np.repeat(by_group, N // K, axis=1)[..., None], x, x.dtype.type(0))


@dataclass
class Layer:
    """`GroupedQueryAttention` of SPEC 10 to 16 in a dialect, without RoPE's scalings: built from a config, given
    canonical weights, called as ours are.
    """

    config: AttentionConfig
    dialect: Dialect = SPEC
    weights: dict[str, Array] = field(default_factory=dict)

    def does(self, convention: str) -> str:
        return chosen(self.dialect, convention)

    def load_weights(self, weights: dict[str, Array]) -> Layer:
        self.weights = dict(weights)
        if self.config.rope and self.does("RoPE pairing") == "key rows permuted with N":
            for name in ("k_proj.weight", "k_proj.bias"):
                if name in weights:
                    self.weights[name] = self._mispermuted(weights[name])
        return self

    def __call__(
        self, query: Array, key: Array | None = None, value: Array | None = None, mask: Array | None = None, *,
        positions: Any = None, key_positions: Any = None, offset: Any = None, need_weights: bool = True,
    ) -> tuple[Array, Array | None]:  # fmt: skip
        c = self.config
        key = query if key is None else key
        value = key if value is None else value
        (B, T), S = query.shape[:2], key.shape[1]
        start = np.asarray(self._start(T, S, offset))[..., None]
        q = self._projected("q_proj", query, c.num_heads)
        k = self._projected("k_proj", key, c.num_kv_heads)
        q = self._prepared(q, "q", start + np.arange(T) if positions is None else positions)
        k = self._prepared(k, "k", np.arange(S) if key_positions is None else key_positions)
        context, weights = Kernel(self.dialect)(
            q, k, self._projected("v_proj", value, c.num_kv_heads), mask, causal=c.causal, window=c.window,
            chunk=c.chunk, offset=offset, scale=c.scale, softcap=c.softcap, sinks=self.weights.get("sinks"),
            need_weights=need_weights,
        )  # fmt: skip
        return self._linear("o_proj", context.swapaxes(1, 2).reshape(B, T, -1)), weights

    def _start(self, T: int, S: int, offset: Any) -> Any:
        if self.does("RoPE positions") == "queries at i":
            return 0
        if offset is None or self.does("offset") == "ignored":
            return 0 if self.does("alignment") == "top-left" else S - T
        return offset

    def _linear(self, name: str, x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            y = _wide(x) @ _wide(self.weights[f"{name}.weight"]).T
        bias = self.weights.get(f"{name}.bias")
        return (y if bias is None or self.does("biases") == "left behind" else y + _wide(bias)).astype(x.dtype)

    def _projected(self, name: str, x: Array, heads: int) -> Array:
        return self._linear(name, x).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def _prepared(self, x: Array, name: str, positions: Array) -> Array:
        steps = [lambda y: self._normed(y, name), lambda y: self._turned(y, positions)]
        for step in reversed(steps) if self.does("QK-norm order") == "after RoPE" else steps:
            x = step(x)
        return x

    def _normed(self, x: Array, name: str) -> Array:
        kind = self.config.qk_norm
        if kind is None:
            return x
        y = _wide(x)
        if kind == "rms_full":
            y = y.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
        if self.does("QK-norm") == "LayerNorm":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + y.dtype.type(self.config.qk_norm_eps))
        y = y * (self._norm_shift(kind) + _wide(self.weights[f"{name}_norm.weight"]))
        if kind == "rms_full":
            y = y.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).swapaxes(1, 2)
        return y.astype(x.dtype)

    def _norm_shift(self, kind: str) -> int:
        shift = int(kind == "rms_plus_one")
        return {"w for 1 + w": 0, "1 + w for w": 1}.get(self.does("norm weights"), shift)

    def _turned(self, x: Array, positions: Any) -> Array:
        rope, y = self.config.rope, _wide(x).copy()
        if rope is None:
            return x
        R = self.config.rotary_dim
        frequencies = np.float32(np.float64(rope.theta) ** (-np.arange(0, R, 2) / R)).astype(y.dtype)
        angles = np.asarray(positions, y.dtype)[..., None] * frequencies
        turn = np.exp(1j * (angles if angles.ndim == 2 else angles[:, None]).astype(np.float64))
        first, second = self._pairs(R)
        z = (y[..., first] + 1j * y[..., second]) * turn
        y[..., first], y[..., second] = z.real, z.imag
        return y.astype(x.dtype)

    def _pairs(self, R: int) -> tuple[Array, Array]:
        assert self.config.rope is not None
        interleaved = self.config.rope.pairing == "interleaved"
        if interleaved != (self.does("RoPE pairing") == "the other one"):
            return np.arange(0, R, 2), np.arange(1, R, 2)
        return np.arange(R // 2), np.arange(R // 2, R)

    def _mispermuted(self, x: Array) -> Array:
        """Key rows from half to interleaved order with K heads, and back with N."""
        K, rest = self.config.num_kv_heads, x.shape[1:]
        heads = self.config.num_heads if len(x) % (2 * self.config.num_heads) == 0 else K
        interleaved = x.reshape(K, 2, -1, *rest).swapaxes(1, 2).reshape(x.shape)
        return interleaved.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(x.shape)


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype in (np.float16, ml_dtypes.bfloat16) else x

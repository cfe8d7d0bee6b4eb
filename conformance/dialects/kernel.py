"""Attention in any dialect: one kernel in NumPy, with every convention's alternatives inside.

Without a dialect it computes what SPEC.md states, which the tests prove against gqa_numpy. It exists to find which
alternative reproduces a target's output. It shares nothing with the planted bugs, which judge the suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.dialects.conventions import SPEC, Dialect, chosen

Array = np.ndarray


@dataclass(frozen=True)
class DialectKernel:
    """`grouped_query_attention` of SPEC 1 to 9 in a dialect: query (B, N, T, H), key (B, K, S, H), value (B, K, S, Hv),
    all of one dtype -> context (B, N, T, Hv), weights (B, N, T, S), in that dtype.
    """

    dialect: Dialect = SPEC

    def does(self, convention: str) -> str:
        return chosen(self.dialect, convention)

    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None = None,
        *,
        causal: bool = False,
        window: int | None = None,
        chunk: int | None = None,
        offset: Any = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        dropout_multiplier: Array | None = None,
        need_weights: bool = True,
    ) -> tuple[Array, Array | None]:
        (B, N, T, H), (_, K, S, Hv) = query.shape, value.shape
        dtype = query.dtype if query.dtype.itemsize > 2 else np.dtype(np.float32)
        visible, bias = self._mask(mask, (B, N, T, S), causal, softcap is not None)
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
            if window is not None and self.does("sinks") == "dropped with a window":
                sinks = None
            sink = self._sink(sinks, (N, K, H), self._scale(scale, H, Hv), softcap)
            weights = self._softmax(scores, visible, None if sink is None else sink.astype(dtype)[:, None, None])
            weights = self._empty(weights, seen, mask, sinks, need_weights)
            factor = 1 if dropout_multiplier is None else self._kept(dropout_multiplier).astype(dtype)
            rounded = (weights * factor).astype(query.dtype).astype(dtype)
            whole = raw[:, self._value_heads(N, K)].astype(dtype)  # a mean is of all values, hidden ones too
            context = np.where(seen, rounded @ v, rounded @ whole)
            context = np.where(weights.any(axis=-1, keepdims=True), context, dtype.type(0))
            if self._of_empty(mask) == "the first value":
                context = np.where(seen, context, whole[:, :, :1])
        returned = weights * factor if self.does("returned weights") == "after dropout" else weights
        if self.does("returned weights") == "averaged over heads":
            returned = returned.mean(axis=1)
        return context.astype(query.dtype), returned.astype(query.dtype) if need_weights else None

    def _key_heads(self, N: int, K: int) -> Array:
        n = np.arange(N)
        match self.does("head order"):
            case "tiled: n % K":
                return n % K
            case "divided by K: n // K":
                return np.minimum(n // K, K - 1)
            case "from the last: K - 1 - n // G":
                return K - 1 - n // (N // K)
            case "KV head 0 for all":
                return 0 * n
        return n // (N // K)

    def _value_heads(self, N: int, K: int) -> Array:
        tiled = self.does("head order") == "keys contiguous, values tiled"
        return np.arange(N) % K if tiled else self._key_heads(N, K)

    def _counts(self, mask: Array | None) -> bool:
        """Whether causal has an effect."""
        return mask is None or self.does("mask with causal") != "mask alone"

    def _mask(self, mask: Array | None, shape: tuple[int, ...], causal: bool, capped: bool) -> tuple[Array, Array]:
        """Who may attend by the mask alone, and what is added to the scores."""
        nothing, everyone = np.zeros(shape), np.ones(shape, bool)
        if mask is None or (causal and self.does("mask with causal") == "causal alone"):
            return everyone, nothing
        padding = mask.ndim == 4 and mask.shape[1:3] == (1, 1)
        mask = self._one_for_all(np.broadcast_to(mask, shape), "mask of each row and head")
        order = self.does("softcap order") if capped else ""
        if order == ("boolean masks added as numbers" if mask.dtype == bool else "floating masks before cap"):
            return everyone, mask.astype(np.float64)
        if mask.dtype == bool:
            match self.does("boolean mask"):
                case "True is hidden":
                    return ~mask, nothing
                case "added as a number":
                    return everyone, mask.astype(np.float64)
                case "added as a number, but for padding" if not padding:
                    return everyone, mask.astype(np.float64)
                case "ignored":
                    return everyone, nothing
            return mask, nothing
        mask = mask.astype(np.float64)
        match self.does("floating mask"):
            case "read as boolean":
                return mask != 0, nothing
            case "ignored":
                return everyone, nothing
            case "finfo.min is hidden":
                return mask > -1e30, np.where(mask > -1e30, mask, 0)
            case "finfo.min overflows":
                nothing_else = (mask < -1e30).all(axis=-1, keepdims=True)
                lost = nothing_else & (mask > -np.inf).any(axis=-1, keepdims=True)
                return lost | (mask > -1e30), np.where(lost, np.nan, np.where(mask > -1e30, mask, 0))
            case "subtracted":
                return mask > -np.inf, np.where(mask > -np.inf, -mask, 0)
        return mask > -np.inf, np.where(mask > -np.inf, mask, 0)

    def _one_for_all(self, x: Array, convention: str) -> Array:
        """x (B, N, T, S), or its first row or head for all."""
        match self.does(convention):
            case "the first row's for all":
                x = np.broadcast_to(x[:1], x.shape)
            case "the first head's for all":
                x = np.broadcast_to(x[:, :1], x.shape)
        return x

    def _kept(self, multiplier: Array) -> Array:
        """What dropout multiplies the weights by."""
        multiplier = self._one_for_all(multiplier, "dropout")
        return np.sign(multiplier) if self.does("dropout") == "kept, not rescaled" else multiplier

    def _placed(
        self, B: int, T: int, S: int, causal: bool, window: int | None, chunk: int | None, offset: Any
    ) -> Array:
        """Who may attend by position, (B, 1, T, S)."""
        default = 0 if self.does("alignment") == "top-left" else S - T
        start = np.broadcast_to(default if offset is None or self.does("offset") == "ignored" else offset, (B,))
        if self.does("offset of each row") == "the first row's for all":
            start = np.broadcast_to(start[:1], (B,))
        i = (start[:, None] + np.arange(T))[:, None, :, None]
        if self.does("offset") == "no position before 0":
            i = np.maximum(i, 0)
        j = np.arange(S)[None, None, None, :]
        allowed = np.ones((B, 1, T, S), bool)
        if causal:
            allowed &= self._in_the_past(i - j, window)
        if window is not None:
            allowed &= self._in_window(i - j, window, causal)
        if chunk is not None:
            allowed &= self._in_chunk(i, j, chunk)
        return allowed

    def _in_the_past(self, behind: Array, window: int | None) -> Array:
        """With a window, what it leaves of causal is the window's convention."""
        if window is not None and self.does("causal window of W") == "a band, causal forgotten":
            return np.ones(behind.shape, bool)
        match self.does("causal"):
            case "j < i, not its own key":
                return behind > 0
            case "j <= i + 1, one key ahead" if window is None:
                return behind >= -1
        return behind >= 0

    def _in_chunk(self, i: Array, j: Array, chunk: int) -> Array:
        match self.does("chunk"):
            case "truncated":
                return np.trunc(i / chunk) == j // chunk
            case "slides with the query":
                return (j <= i) & (i < j + chunk)
        return i // chunk == j // chunk

    def _in_window(self, behind: Array, window: int, causal: bool) -> Array:
        if causal:
            match self.does("causal window of W"):
                case "a band, causal forgotten":
                    return np.abs(behind) < window
                case "ignored":
                    return np.ones(behind.shape, bool)
            return behind < window + {"counts neighbours: W + 1 keys": 1, "W - 1 keys": -1}.get(
                self.does("causal window of W"), 0
            )
        match self.does("window without causal"):
            case "W keys, the past only":
                return (behind >= 0) & (behind < window)
            case "the future open":
                return behind < window
            case "counts neighbours, the future open":
                return behind <= window
            case "counts neighbours: 2 W + 1 keys":
                return np.abs(behind) <= window
            case "2 W - 3 keys":
                return np.abs(behind) < window - 1
            case "ignored":
                return np.ones(behind.shape, bool)
        return np.abs(behind) < window

    def _scale(self, given: float | None, H: int, Hv: int) -> float:
        own = {"1": 1.0, "Hv ** -0.5": Hv**-0.5, "1 / H": 1 / H}.get(self.does("scale"), H**-0.5)
        if given is None or self.does("given scale") == "ignored":
            return own
        return given * {"on top of H ** -0.5": own, "squared": given}.get(self.does("given scale"), 1.0)

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
        if self.does("floating mask") == "scaled with the scores":
            bias = bias * scale
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
        if order == "floating masks before cap":
            return _cap(scores + bias, cap), visible
        if order == "cap before scale":
            capped = _cap(product, cap) * dtype.type(scale)
        elif order == "clipped, no tanh":
            capped = np.clip(scores, -cap, cap)
        else:
            capped = cap * np.tanh(scores) if order == "tanh of the score itself" else _cap(scores, cap)
        return np.maximum(capped + bias, np.finfo(dtype).min), visible

    def _sink(
        self, sinks: Array | None, sizes: tuple[int, int, int], scale: float, softcap: float | None
    ) -> Array | None:
        """One logit for each query head, (N,)."""
        N, K, H = sizes
        match self.does("sinks"):
            case _ if sinks is None:
                return None
            case "ignored":
                return None
            case "scaled":
                return sinks * scale
            case "times H ** -0.5":
                return sinks * H**-0.5
            case "capped" if softcap is not None:
                return _cap(sinks, softcap)
            case "per KV head":
                return sinks[np.arange(N) // (N // K)]
            case "exp(0) for every head":
                return np.zeros(N)
        return sinks

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
        power = np.exp2 if self.does("softmax") == "2 ** x" else np.exp
        parts = power(scores - np.where(np.isneginf(top), scores.dtype.type(0), top))
        total = parts.sum(axis=-1, keepdims=True)
        weights = (parts / np.where(total == 0, scores.dtype.type(1), total))[..., : visible.shape[-1]]
        if sink is not None and self.does("sinks") == "given to the first key":
            first = visible & (visible.cumsum(axis=-1) == 1)
            weights = weights + np.where(first, 1 - weights.sum(axis=-1, keepdims=True), 0)
        return weights.astype(kept)

    def _empty(self, weights: Array, seen: Array, mask: Array | None, sinks: Any, need_weights: bool) -> Array:
        """The weights of rows that see no key. With a sink they are 0 in every dialect."""
        choice = self._of_empty(mask)
        if need_weights and self.does("asking for weights") == "changes empty rows":
            choice = "mean of all values" if choice == "0" else "0"
        fill = {"mean of all values": 1 / weights.shape[-1], "NaN": np.nan}.get(choice, 0.0) if sinks is None else 0.0
        return np.where(seen, weights, weights.dtype.type(fill))

    def _of_empty(self, mask: Array | None) -> str:
        return self.does("empty row, -inf" if mask is not None and mask.dtype != bool else "empty row, boolean")


def _cap(scores: Array, cap: Any) -> Array:
    return cap * np.tanh(scores / cap)


def _scrubbed(x: Array, visible: Array, K: int) -> Array:
    """0 where no query head of the KV head's group sees the key; x (B, N, S, size) holds one row per query head."""
    B, N, _, S = visible.shape
    by_group = visible.any(axis=2).reshape(B, K, N // K, S).any(axis=2)
    return np.where(np.repeat(by_group, N // K, axis=1)[..., None], x, x.dtype.type(0))

"""Attention one number at a time, in five loops of plain Python: what the oracle is checked with.

It shares nothing with any backend. Every decision is a method of one or two lines, so that a mutant is the one method
that somebody got wrong (conformance.mutants).
"""

from __future__ import annotations

import math
from operator import mul
from typing import Any

import numpy as np

Array = np.ndarray


class ReferenceKernel:
    """query (B, N, T, H), key (B, K, S, H), value (B, K, S, Hv) in float64 -> context (B, N, T, Hv), weights
    (B, N, T, S).
    """

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n // (N // K)

    def value_head(self, n: int, N: int, K: int) -> int:
        return self.kv_head(n, N, K)

    def position(self, i: int, offset: int) -> int:
        return i + offset

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        if causal and j > place:
            return False
        if window is not None and abs(place - j) >= self.window(window):
            return False
        return chunk is None or place // chunk == j // chunk

    def window(self, window: int) -> int:
        return window

    def masked(self, mask: Any) -> bool:
        """Whether a mask's entry hides the key."""
        return not mask if isinstance(mask, bool | np.bool_) else mask == -math.inf

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return H**-0.5 if given is None else given

    def capped(self, score: float, softcap: float | None) -> float:
        return score if softcap is None else softcap * math.tanh(score / softcap)

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return max(self.capped(product * scale, softcap) + bias, -np.finfo(np.float64).max)

    def row(self, scores: list[float], sink: float) -> list[float]:
        """Softmax over the visible scores of one row; the sink in the denominator alone."""
        peak = max(*scores, sink)
        parts = [math.exp(score - peak) for score in scores]
        total = math.fsum(parts) + math.exp(sink - peak)
        return [part / total for part in parts]

    def empty(self, values: Array) -> tuple[float, Array]:
        """The weight of each key and the context of a row that sees none."""
        return 0.0, np.zeros(values.shape[1])

    def sink_of(self, sinks: Array | None, n: int, N: int, K: int) -> float:
        return -math.inf if sinks is None else float(sinks[n])

    def returned(self, weight: float, multiplier: float) -> float:
        return weight

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
    ) -> tuple[Array, Array]:
        (B, N, T, H), (_, K, S, Hv) = query.shape, value.shape
        scale = self.scale(scale, H, Hv)
        offsets = np.broadcast_to(S - T if offset is None else offset, (B,))
        entries = None if mask is None else np.broadcast_to(mask, (B, N, T, S))
        multiplier = np.ones((B, N, T, S)) if dropout_multiplier is None else dropout_multiplier
        weights, context = np.zeros((B, N, T, S)), np.zeros((B, N, T, Hv))
        q_rows, k_rows, v_rows = query.tolist(), key.tolist(), value.tolist()  # Python numbers: 5 times faster to read
        for b, n, i in np.ndindex(B, N, T):
            place = self.position(i, int(offsets[b]))
            kv, vv = self.kv_head(n, N, K), self.value_head(n, N, K)
            keys = [
                j
                for j in range(S)
                if self.allowed(place, j, causal, window, chunk)
                and not (entries is not None and self.masked(entries[b, n, i, j]))
            ]
            scores = []
            for j in keys:
                product = sum(map(mul, q_rows[b][n][i], k_rows[b][kv][j]))
                bias = 0.0 if entries is None or entries.dtype == bool else float(entries[b, n, i, j])
                scores.append(self.score(product, scale, softcap, bias))
            if not keys:
                weights[b, n, i], context[b, n, i] = self.empty(value[b, vv])
                continue
            row = self.row(scores, self.sink_of(sinks, n, N, K))
            factors = [float(multiplier[b, n, i, j]) for j in keys]
            weights[b, n, i, keys] = list(map(self.returned, row, factors))
            for v in range(Hv):
                seen = (v_rows[b][vv][j][v] for j in keys)
                context[b, n, i, v] = sum(w * f * x for w, f, x in zip(row, factors, seen, strict=True))
        return context, weights

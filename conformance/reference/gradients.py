"""The gradient of attention one row at a time, by the chain rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class ReferenceGradients:
    """Arguments as `ReferenceKernel`, and the gradient of the context (B, N, T, Hv) -> gradients by argument's name."""

    def __call__(
        self, d_context: Array, query: Array, key: Array, value: Array, mask: Array | None = None, **settings: Any
    ) -> dict[str, Array]:
        rules, (B, N, T, H), (K, S, Hv) = ReferenceKernel(), query.shape, value.shape[1:]
        _, weights = rules(query, key, value, mask, **settings)
        scale, softcap = rules.scale(settings.get("scale"), H, Hv), settings.get("softcap")
        multiplier = settings.get("dropout_multiplier")
        sinks = settings.get("sinks")
        d_scores, d_sinks = np.zeros((B, N, T, S)), np.zeros(N)
        d = {"query": np.zeros(query.shape), "key": np.zeros(key.shape), "value": np.zeros(value.shape)}
        for b, n, i in np.ndindex(B, N, T):
            kv, p = self.kv_head(n, N, K), weights[b, n, i]
            m = np.ones(S) if multiplier is None else multiplier[b, n, i]
            seen = np.flatnonzero(p)
            d_weight = self.d_weights(value[b, kv, seen] @ d_context[b, n, i], m[seen])
            shared = self.shared(p[seen], d_weight)
            bias = 0.0 if mask is None or mask.dtype == bool else np.broadcast_to(mask, weights.shape)[b, n, i, seen]
            d_masked = p[seen] * (d_weight - shared) * self.d_clamp(bias)
            scores = self.scores(key[b, kv, seen], query[b, n, i], scale)
            d_scores[b, n, i, seen] = d_masked
            d_product = d_masked * self.d_cap(scores, softcap) * self.d_scale(scale)
            d["query"][b, n, i] = d_product @ key[b, kv, seen]
            self.add(d["key"], (b, kv, seen), np.outer(d_product, query[b, n, i]), n, N // K)
            self.add(d["value"], (b, kv, seen), np.outer(self.kept(p, m)[seen], d_context[b, n, i]), n, N // K)
            d_sinks[n] += self.d_sink(p[seen], shared)
        if mask is not None and mask.dtype != bool:
            d["mask"] = self.d_mask(d_scores, mask.shape)
        return d if sinks is None else d | {"sinks": d_sinks}

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n // (N // K)

    def scores(self, keys: Array, query: Array, scale: float) -> Array:
        return keys @ query * scale

    def d_weights(self, d_kept: Array, multiplier: Array) -> Array:
        return d_kept * multiplier

    def shared(self, weights: Array, d_weights: Array) -> float:
        """What the softmax takes off each of its row's gradients, because their sum is fixed."""
        return math.fsum(weights * d_weights)

    def kept(self, weights: Array, multiplier: Array) -> Array:
        return weights * multiplier

    def d_clamp(self, bias: Any) -> Any:
        """A score plus finfo.min is clamped, and follows its terms no longer (SPEC 3)."""
        return bias > np.finfo(np.float64).min

    def d_cap(self, scores: Array, softcap: float | None) -> Any:
        return 1.0 if softcap is None else 1 - np.tanh(scores / softcap) ** 2

    def d_scale(self, scale: float) -> float:
        return scale

    def add(self, total: Array, place: Any, part: Array, n: int, group_size: int) -> None:
        total[place] += part

    def d_sink(self, weights: Array, shared: float) -> float:
        return -(1 - math.fsum(weights)) * shared if len(weights) else 0.0

    def d_mask(self, d_scores: Array, shape: tuple[int, ...]) -> Array:
        """Summed over the axes that were broadcast."""
        short = (1,) * (4 - len(shape)) + shape
        axes = tuple(axis for axis in range(4) if short[axis] == 1 != d_scores.shape[axis])
        return d_scores.sum(axis=axes, keepdims=True).reshape(shape)

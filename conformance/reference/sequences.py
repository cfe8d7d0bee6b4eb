"""Packed and paged attention in the plainest form: each step is a method, which a mutant replaces."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.cases.sequences import SequenceCase, Sequences, pages

Array = np.ndarray


class ReferencePacked:
    """query (total T, N, H), key and value (total S, K, ...), starts of each sequence -> (total T, N, Hv)."""

    def __call__(
        self, query: Array, key: Array, value: Array, query_starts: Any, key_starts: Any, **settings: Any
    ) -> Array:
        output = np.zeros((*query.shape[:2], value.shape[2]))
        for b in range(len(query_starts) - 1):
            queries = self.span(query_starts, b)
            keys = self.keys(query_starts, key_starts, b, len(key))
            output[queries] = self.sequence(query[queries], key[keys], value[keys], settings)
        return output

    def span(self, starts: Any, b: int) -> slice:
        return slice(int(starts[b]), int(starts[b + 1]))

    def keys(self, query_starts: Any, key_starts: Any, b: int, total: int) -> slice:
        return self.span(key_starts, b)

    def sequence(self, query: Array, key: Array, value: Array, settings: Any) -> Array:
        (T, N, H), (S, K, Hv) = query.shape, value.shape
        output = np.zeros((T, N, Hv))
        visible = self.visible(T, S, settings)
        for n in range(N):
            k = self.kv_head(n, N, K)
            scores = query[:, n] @ key[:, k].T * self.scale(H, settings)
            if settings.get("softcap") is not None:
                scores = settings["softcap"] * np.tanh(scores / settings["softcap"])
            sink = settings["sinks"][n] if "sinks" in settings else -np.inf
            output[:, n] = self.average(np.where(visible, scores, -np.inf), sink, value[:, k])
        return output

    def visible(self, T: int, S: int, settings: Any) -> Array:
        distance = np.arange(T)[:, None] + self.offset(T, S) - np.arange(S)
        seen = np.ones((T, S), bool)
        if settings.get("causal"):
            seen &= distance >= 0
        if settings.get("window") is not None:
            seen &= np.abs(distance) < settings["window"]
        return seen

    def offset(self, T: int, S: int) -> int:
        return S - T

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n // (N // K)

    def scale(self, H: int, settings: Any) -> float:
        return float(H**-0.5 if settings.get("scale") is None else settings["scale"])

    def average(self, scores: Array, sink: float, value: Array) -> Array:
        top = np.maximum(scores.max(-1, initial=-np.inf, keepdims=True), sink)
        top = np.where(np.isneginf(top), 0, top)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True) + np.exp(sink - top)
        return weights / np.where(total == 0, 1, total) @ value


class ReferencePaged(ReferencePacked):
    """query (total T, N, H) and its starts, key and value (blocks, slots, K, ...), tables (B, ...), lengths (B,)."""

    def paged(
        self, query: Array, key: Array, value: Array, query_starts: Any, tables: Array, lengths: Any, **settings: Any
    ) -> Array:
        output = np.zeros((*query.shape[:2], value.shape[3]))
        for b, length in enumerate(lengths):
            queries = self.span(query_starts, b)
            keys, values = (self.gathered(x, tables, b, int(length)) for x in (key, value))
            output[queries] = self.sequence(query[queries], keys, values, settings)
        return output

    def gathered(self, cache: Array, tables: Array, b: int, length: int) -> Array:
        """The keys of one sequence, in order."""
        return cache[self.blocks(tables, b)].reshape(-1, *cache.shape[2:])[: self.length(length, cache.shape[1])]

    def blocks(self, tables: Array, b: int) -> Array:
        return tables[b]

    def length(self, length: int, block: int) -> int:
        return length


def computed(reference: ReferencePacked, case: SequenceCase, found: Sequences) -> Array:
    """What a reference or a mutant of it gives, in float64."""
    settings = {name: x.astype(np.float64) if isinstance(x, Array) else x for name, x in found.settings.items()}
    query = found.query.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if isinstance(reference, ReferencePaged):
            held = pages(case, found)
            key, value = held.key.astype(np.float64), held.value.astype(np.float64)
            return reference.paged(query, key, value, found.query_starts, held.tables, held.lengths, **settings)
        key, value = found.key.astype(np.float64), found.value.astype(np.float64)
        return reference(query, key, value, found.query_starts, found.key_starts, **settings)

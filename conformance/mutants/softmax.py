"""Mutants of the kernel's softmax: denominator, sinks, dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class SoftmaxWithoutSum(ReferenceKernel):
    """exp without its denominator."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        peak = max(*scores, sink)
        return [math.exp(score - peak) for score in scores]


class SoftmaxBaseTwo(ReferenceKernel):
    """2 ** x where the kernel forgot to multiply by log2(e)."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        return super().row([score * math.log(2) for score in scores], sink * math.log(2))


class SinkInNumerator(ReferenceKernel):
    """The sink's share is added to the first key instead of being lost to the row."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        row = super().row(scores, sink)
        return [row[0] + 1 - math.fsum(row), *row[1:]]


class SinkIgnored(ReferenceKernel):
    """No sinks at all."""

    def sink_of(self, sinks: Array | None, n: int, N: int, K: int) -> float:
        return -math.inf


class SinkPerKVHead(ReferenceKernel):
    """The sink looked up by KV head."""

    def sink_of(self, sinks: Array | None, n: int, N: int, K: int) -> float:
        return super().sink_of(sinks, self.kv_head(n, N, K), N, K)


class SinkScaled(ReferenceKernel):
    """The sink multiplied by the scale, as if it were a score."""

    def __call__(self, query: Array, *args: Any, sinks: Any = None, **keywords: Any) -> tuple[Array, Array]:
        scaled = None if sinks is None else sinks * query.shape[-1] ** -0.5
        return super().__call__(query, *args, sinks=scaled, **keywords)


class SinkCapped(ReferenceKernel):
    """The sink goes through the softcap."""

    def __call__(self, *args: Any, sinks: Any = None, softcap: Any = None, **keywords: Any) -> tuple[Array, Array]:
        capped = sinks if sinks is None or softcap is None else softcap * np.tanh(sinks / softcap)
        return super().__call__(*args, sinks=capped, softcap=softcap, **keywords)


class SinkOnlyUnmasked(ReferenceKernel):
    """Sinks dropped where a window or a mask is at work."""

    def __call__(self, *args: Any, sinks: Any = None, window: Any = None, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*args, sinks=sinks if window is None else None, window=window, **keywords)


class SinkFillsEmptyRows(ReferenceKernel):
    """A row that sees nothing gives its first value, since the sink keeps the softmax finite."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return 0.0, np.array(values[0])


class WeightsAfterDropout(ReferenceKernel):
    """Returned weights are those after dropout."""

    def returned(self, weight: float, multiplier: float) -> float:
        return weight * multiplier


class DropoutNotRescaled(ReferenceKernel):
    """Dropped weights are 0, kept ones not divided by 1 - p."""

    def __call__(self, *args: Any, dropout_multiplier: Any = None, **keywords: Any) -> tuple[Array, Array]:
        kept = None if dropout_multiplier is None else (dropout_multiplier > 0).astype(float)
        return super().__call__(*args, dropout_multiplier=kept, **keywords)


class DropoutSharedByHeads(ReferenceKernel):
    """One pattern of dropout for all heads."""

    def __call__(self, *args: Any, dropout_multiplier: Any = None, **keywords: Any) -> tuple[Array, Array]:
        given = dropout_multiplier
        shared = None if given is None else np.broadcast_to(given[:, :1], given.shape)
        return super().__call__(*args, dropout_multiplier=shared, **keywords)

"""Mutants of the kernel's heads: which KV head, mask, offset or weights a query head gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class TiledHeads(ReferenceKernel):
    """np.tile instead of np.repeat: query head n reads KV head n % K."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n % K


class DividedByK(ReferenceKernel):
    """n // K instead of n // G: right wherever K equals G."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return min(n // K, K - 1)


class ValueGroupedDifferently(ReferenceKernel):
    """Keys repeated, values tiled."""

    def value_head(self, n: int, N: int, K: int) -> int:
        return n % K


class GroupsFromTheEnd(ReferenceKernel):
    """KV heads counted from the last."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return K - 1 - super().kv_head(n, N, K)


class FirstKVHeadForAll(ReferenceKernel):
    """Every query head reads KV head 0: multi-query attention by mistake."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return 0


class WeightsAveraged(ReferenceKernel):
    """The weights of all heads averaged, as nn.MultiheadAttention returns them by default."""

    def __call__(self, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        context, weights = super().__call__(*args, **keywords)
        return context, weights.mean(axis=1)

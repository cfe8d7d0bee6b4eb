"""Mutants of the kernel's masks: polarity, bias, broadcasting, empty rows, poison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class InvertedMask(ReferenceKernel):
    """True read as masked, as nn.MultiheadAttention has it."""

    def masked(self, mask: Any) -> bool:
        return bool(mask) if isinstance(mask, bool | np.bool_) else super().masked(mask)


class FloatMaskAsBoolean(ReferenceKernel):
    """A floating mask cast to bool: every bias that is not 0 may attend."""

    def masked(self, mask: Any) -> bool:
        return not bool(mask)

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return self.capped(product * scale, softcap)


class MinimumIsMasked(ReferenceKernel):
    """finfo.min taken for a mask instead of a bias."""

    def masked(self, mask: Any) -> bool:
        return super().masked(mask) or (not isinstance(mask, bool | np.bool_) and mask < -1e30)


class MinimumOverflows(ReferenceKernel):
    """score + finfo.min taken twice is -inf, and a row of these NaN."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return (
            self.capped(product * scale, softcap) + 2 * bias
            if bias < -1e30
            else super().score(product, scale, softcap, bias)
        )

    def row(self, scores: list[float], sink: float) -> list[float]:
        return super().row(scores, sink) if max(*scores, sink) > -math.inf else [math.nan] * len(scores)


class BiasScaled(ReferenceKernel):
    """The mask's bias added before the scale."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return super().score(product, scale, softcap, bias * scale)


class BiasSubtracted(ReferenceKernel):
    """The mask's bias with the wrong sign."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return super().score(product, scale, softcap, -bias)


class CausalDropsMask(ReferenceKernel):
    """With causal=True the mask that was given is ignored."""

    def __call__(self, *args: Any, causal: bool = False, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*(args[:3] if causal else args), causal=causal, **keywords)


class MaskDropsCausal(ReferenceKernel):
    """With a mask causal is taken for a hint and ignored."""

    def __call__(self, *args: Any, causal: bool = False, **keywords: Any) -> tuple[Array, Array]:
        masked = len(args) > 3 and args[3] is not None
        return super().__call__(*args, causal=causal and not masked, **keywords)


class FirstRowsMaskForAll(ReferenceKernel):
    """The mask of the first batch row, used for every row."""

    def __call__(self, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        first = [x[:1] if i == 3 and x is not None and np.ndim(x) == 4 else x for i, x in enumerate(args)]
        return super().__call__(*first, **keywords)


class FirstHeadsMaskForAll(ReferenceKernel):
    """The mask of the first head, used for every head."""

    def __call__(self, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        first = [x[:, :1] if i == 3 and x is not None and np.ndim(x) == 4 else x for i, x in enumerate(args)]
        return super().__call__(*first, **keywords)


class EmptyRowIsMean(ReferenceKernel):
    """A row that sees no key returns the mean of all values, the future's included."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return 1 / len(values), values.mean(axis=0)


class EmptyRowIsNaN(ReferenceKernel):
    """A row that sees no key is 0 / 0."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return math.nan, np.full(values.shape[1], math.nan)


class PoisonLeaks(ReferenceKernel):
    """Hidden keys get a weight of 0, and 0 * NaN is NaN."""

    def __call__(self, query: Array, key: Array, value: Array, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        context, weights = super().__call__(query, key, value, *args, **keywords)
        with np.errstate(invalid="ignore"):
            return context + 0 * value.sum(axis=(1, 2))[:, None, None, :], weights

"""Mutants of the kernel's scores: scale and softcap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class ScaleForgotten(ReferenceKernel):
    """No 1 / sqrt(H)."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return 1.0 if given is None else given


class ScaleIgnored(ReferenceKernel):
    """Always 1 / sqrt(H), whatever scale is given."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return H**-0.5


class ScaleFromValue(ReferenceKernel):
    """1 / sqrt(Hv): the head size read off the value."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return Hv**-0.5 if given is None else given


class ScaleTwice(ReferenceKernel):
    """Queries scaled, and their scores once more."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return super().scale(given, H, Hv) ** 2


class ScaleBesidesDefault(ReferenceKernel):
    """A given scale multiplied onto 1 / sqrt(H) instead of replacing it."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return H**-0.5 * (1 if given is None else given)


class SoftcapAfterMask(ReferenceKernel):
    """The cap squeezes the mask's bias too: hidden keys come back at -softcap."""

    def __call__(self, *args: Any, softcap: float | None = None, **keywords: Any) -> tuple[Array, Array]:
        self.capping = softcap is not None
        return super().__call__(*args, softcap=softcap, **keywords)

    def masked(self, mask: Any) -> bool:
        return super().masked(mask) and not self.capping

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        if softcap is None:
            return super().score(product, scale, softcap, bias)
        return self.capped(max(product * scale + bias, -1e300), softcap)


class SoftcapBeforeScale(ReferenceKernel):
    """The cap on the raw product, then the scale."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return self.capped(product, softcap) * scale + bias


class SoftcapIgnored(ReferenceKernel):
    """No cap."""

    def capped(self, score: float, softcap: float | None) -> float:
        return score


class SoftcapClips(ReferenceKernel):
    """A hard limit instead of tanh."""

    def capped(self, score: float, softcap: float | None) -> float:
        return score if softcap is None else min(max(score, -softcap), softcap)


class SoftcapWithoutInverse(ReferenceKernel):
    """tanh of the score itself, not of score / cap."""

    def capped(self, score: float, softcap: float | None) -> float:
        return score if softcap is None else softcap * math.tanh(score)

"""Mutants of backward passes: the forward result is right, so only a gradient shows them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.gradients import ReferenceGradients

Array = np.ndarray


class LastHeadOfGroupOnly(ReferenceGradients):
    """Gradients of a KV head overwritten by each query head of its group instead of summed."""

    def add(self, total: Array, place: Any, part: Array, n: int, group_size: int) -> None:
        total[place] = part if n % group_size == group_size - 1 else 0


class AveragedOverGroup(ReferenceGradients):
    """The mean over a group where its sum is meant."""

    def add(self, total: Array, place: Any, part: Array, n: int, group_size: int) -> None:
        total[place] += part / group_size


class TiledBackward(ReferenceGradients):
    """Forward reads KV head n // G, backward n % K."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n % K


class SoftmaxAsExp(ReferenceGradients):
    """The softmax's denominator taken for a constant."""

    def shared(self, weights: Array, d_weights: Array) -> float:
        return 0.0


class SinkLeavesShare(ReferenceGradients):
    """The row's share divided by the weights' sum, which a sink makes less than 1."""

    def shared(self, weights: Array, d_weights: Array) -> float:
        return super().shared(weights, d_weights) / (math.fsum(weights) or 1.0)


class ClampTakenForIdentity(ReferenceGradients):
    """A score that was clamped to finfo.min still sends a gradient."""

    def d_clamp(self, bias: Any) -> Any:
        return True


class CapTakenForIdentity(ReferenceGradients):
    """No derivative of tanh."""

    def d_cap(self, scores: Array, softcap: float | None) -> Any:
        return 1.0


class CapOfRawScore(ReferenceGradients):
    """tanh's derivative at the score, not at score / cap."""

    def d_cap(self, scores: Array, softcap: float | None) -> Any:
        return 1.0 if softcap is None else 1 - np.tanh(scores) ** 2


class ScaleForgottenBackward(ReferenceGradients):
    """Scores were scaled, their gradients are not."""

    def d_scale(self, scale: float) -> float:
        return 1.0


class DropoutForgottenInWeights(ReferenceGradients):
    """Dropped weights still get a gradient."""

    def d_weights(self, d_kept: Array, multiplier: Array) -> Array:
        return d_kept


class DropoutForgottenInValues(ReferenceGradients):
    """Values get the gradient of weights that were dropped."""

    def kept(self, weights: Array, multiplier: Array) -> Array:
        return weights


class SinkWithoutGradient(ReferenceGradients):
    """Sinks are a constant."""

    def d_sink(self, weights: Array, shared: float) -> float:
        return 0.0


class SinkGradientPositive(ReferenceGradients):
    """The sink's gradient with the wrong sign."""

    def d_sink(self, weights: Array, shared: float) -> float:
        return -super().d_sink(weights, shared)


class MaskGradientOfFirstRow(ReferenceGradients):
    """A broadcast mask gets one row's gradient instead of the sum."""

    def d_mask(self, d_scores: Array, shape: tuple[int, ...]) -> Array:
        short = (1,) * (4 - len(shape)) + shape
        return d_scores[tuple(slice(size) for size in short)].reshape(shape)

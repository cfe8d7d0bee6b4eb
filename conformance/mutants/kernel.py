"""Planted bugs of the kernel: heads, masks, positions, scores, softmax, sinks, dropout."""

from __future__ import annotations

import math
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


class TopLeftCausal(ReferenceKernel):
    """Query i always at position i, however many keys there are."""

    def position(self, i: int, offset: int) -> int:
        return i


class WindowOneMore(ReferenceKernel):
    """The window counts the keys before the query, not the query's own: W + 1 keys."""

    def window(self, window: int) -> int:
        return window + 1


class WindowOneLess(ReferenceKernel):
    """W - 1 keys, the query's own counted."""

    def window(self, window: int) -> int:
        return window - 1


class WindowLeaksFuture(ReferenceKernel):
    """With a window the causal mask is dropped."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal and window is None, window, chunk)


class ChunkRoundsToZero(ReferenceKernel):
    """Division that truncates: negative positions fall into chunk 0."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        same_chunk = chunk is None or int(place / chunk) == j // chunk
        return same_chunk and super().allowed(place, j, causal, window, None)


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


class EmptyRowIsMean(ReferenceKernel):
    """A row that sees no key returns the mean of all values, the future's included."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return 1 / len(values), values.mean(axis=0)


class EmptyRowIsNaN(ReferenceKernel):
    """A row that sees no key is 0 / 0."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return math.nan, np.full(values.shape[1], math.nan)


class SinkInNumerator(ReferenceKernel):
    """The sink's share is added to the first key instead of leaving the row."""

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


class WeightsAfterDropout(ReferenceKernel):
    """Returned weights are those that dropout has already thinned."""

    def returned(self, weight: float, multiplier: float) -> float:
        return weight * multiplier


class GroupsFromTheEnd(ReferenceKernel):
    """KV heads counted from the last."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return K - 1 - super().kv_head(n, N, K)


class FirstKVHeadForAll(ReferenceKernel):
    """Every query head reads KV head 0: multi-query attention by mistake."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return 0


class CausalWithoutItself(ReferenceKernel):
    """j < i instead of j <= i: no query sees its own position."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return not (causal and j == place) and super().allowed(place, j, causal, window, chunk)


class CausalOneAhead(ReferenceKernel):
    """Every query sees one key of the future."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place + 1 if causal and window is None else place, j, causal, window, chunk)


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


class FirstRowsOffsetForAll(ReferenceKernel):
    """One offset for the whole batch, though each row has its own."""

    def __call__(self, *args: Any, offset: Any = None, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*args, offset=None if offset is None else np.ravel(offset)[0], **keywords)


class OffsetIgnored(ReferenceKernel):
    """Always aligned at the last key, whatever offset is given."""

    def __call__(self, *args: Any, offset: Any = None, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*args, **keywords)


class NegativeOffsetIsZero(ReferenceKernel):
    """Positions clamped to 0, so that a query before the first key sees it."""

    def position(self, i: int, offset: int) -> int:
        return max(super().position(i, offset), 0)


class BandLooksBackOnly(ReferenceKernel):
    """A window without causal made one-sided."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal or window is not None, window, chunk)


class WindowIgnored(ReferenceKernel):
    """No window at all."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal, None, chunk)


class ChunkAsWindow(ReferenceKernel):
    """Chunks slide with the query."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        near = chunk is None or place - chunk < j <= place
        return near and super().allowed(place, j, causal, window, None)


class ScaleTwice(ReferenceKernel):
    """Queries scaled, and their scores once more."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return super().scale(given, H, Hv) ** 2


class ScaleBesidesDefault(ReferenceKernel):
    """A given scale multiplied onto 1 / sqrt(H) instead of replacing it."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return H**-0.5 * (1 if given is None else given)


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


class BiasScaled(ReferenceKernel):
    """The mask's bias added before the scale."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return super().score(product, scale, softcap, bias * scale)


class BiasSubtracted(ReferenceKernel):
    """The mask's bias with the wrong sign."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return super().score(product, scale, softcap, -bias)


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


class SoftmaxWithoutSum(ReferenceKernel):
    """exp without its denominator."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        peak = max(*scores, sink)
        return [math.exp(score - peak) for score in scores]


class SoftmaxBaseTwo(ReferenceKernel):
    """2 ** x where the kernel forgot to multiply by log2(e)."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        return super().row([score * math.log(2) for score in scores], sink * math.log(2))


class PoisonLeaks(ReferenceKernel):
    """Hidden keys get a weight of 0, and 0 * NaN is NaN."""

    def __call__(self, query: Array, key: Array, value: Array, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        context, weights = super().__call__(query, key, value, *args, **keywords)
        with np.errstate(invalid="ignore"):
            return context + 0 * value.sum(axis=(1, 2))[:, None, None, :], weights


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


class WeightsAveraged(ReferenceKernel):
    """The weights of all heads averaged, as nn.MultiheadAttention returns them by default."""

    def __call__(self, *args: Any, **keywords: Any) -> tuple[Array, Array]:
        context, weights = super().__call__(*args, **keywords)
        return context, weights.mean(axis=1)

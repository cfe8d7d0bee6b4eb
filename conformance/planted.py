"""Planted bugs: what really goes wrong in implementations of attention, each as the one method that somebody got wrong.

They are built on the textbook code and on nothing else. A suite that lets one of them pass has a hole (`kill_table`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from einops import rearrange

from conformance.textbook import Textbook
from conformance.textbook_layer import TextbookLayer

Array = np.ndarray


class TiledHeads(Textbook):
    """np.tile instead of np.repeat: query head n reads KV head n % K."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return n % K


class DividedByK(Textbook):
    """n // K instead of n // G: right wherever K equals G."""

    def kv_head(self, n: int, N: int, K: int) -> int:
        return min(n // K, K - 1)


class ValueGroupedDifferently(Textbook):
    """Keys repeated, values tiled."""

    def value_head(self, n: int, N: int, K: int) -> int:
        return n % K


class TopLeftCausal(Textbook):
    """Query i always at position i, however many keys there are."""

    def position(self, i: int, offset: int) -> int:
        return i


class WindowOneMore(Textbook):
    """The window counts the keys before the query, not the query's own: W + 1 keys."""

    def window(self, window: int) -> int:
        return window + 1


class WindowOneLess(Textbook):
    """W - 1 keys, the query's own counted."""

    def window(self, window: int) -> int:
        return window - 1


class WindowLeaksFuture(Textbook):
    """With a window the causal mask is dropped."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal and window is None, window, chunk)


class ChunkRoundsToZero(Textbook):
    """Division that truncates: negative positions fall into chunk 0."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        same_chunk = chunk is None or int(place / chunk) == j // chunk
        return same_chunk and super().allowed(place, j, causal, window, None)


class ScaleForgotten(Textbook):
    """No 1 / sqrt(H)."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return 1.0 if given is None else given


class ScaleIgnored(Textbook):
    """Always 1 / sqrt(H), whatever scale is given."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return H**-0.5


class ScaleFromValue(Textbook):
    """1 / sqrt(Hv): the head size read off the value."""

    def scale(self, given: float | None, H: int, Hv: int) -> float:
        return Hv**-0.5 if given is None else given


class SoftcapAfterMask(Textbook):
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


class SoftcapBeforeScale(Textbook):
    """The cap on the raw product, then the scale."""

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return self.capped(product, softcap) * scale + bias


class InvertedMask(Textbook):
    """True read as masked, as nn.MultiheadAttention has it."""

    def masked(self, mask: Any) -> bool:
        return bool(mask) if isinstance(mask, bool | np.bool_) else super().masked(mask)


class FloatMaskAsBoolean(Textbook):
    """A floating mask cast to bool: every bias that is not 0 may attend."""

    def masked(self, mask: Any) -> bool:
        return not bool(mask)

    def score(self, product: float, scale: float, softcap: float | None, bias: float) -> float:
        return self.capped(product * scale, softcap)


class MinimumIsMasked(Textbook):
    """finfo.min taken for a mask instead of a bias."""

    def masked(self, mask: Any) -> bool:
        return super().masked(mask) or (not isinstance(mask, bool | np.bool_) and mask < -1e30)


class EmptyRowIsMean(Textbook):
    """A row that sees no key returns the mean of all values, the future's included."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return 1 / len(values), values.mean(axis=0)


class EmptyRowIsNaN(Textbook):
    """A row that sees no key is 0 / 0."""

    def empty(self, values: Array) -> tuple[float, Array]:
        return math.nan, np.full(values.shape[1], math.nan)


class SinkInNumerator(Textbook):
    """The sink's share is added to the first key instead of leaving the row."""

    def row(self, scores: list[float], sink: float) -> list[float]:
        row = super().row(scores, sink)
        return [row[0] + 1 - math.fsum(row), *row[1:]]


class SinkIgnored(Textbook):
    """No sinks at all."""

    def sink_of(self, sinks: Array | None, n: int, N: int, K: int) -> float:
        return -math.inf


class SinkPerKVHead(Textbook):
    """The sink looked up by KV head."""

    def sink_of(self, sinks: Array | None, n: int, N: int, K: int) -> float:
        return super().sink_of(sinks, self.kv_head(n, N, K), N, K)


class WeightsAfterDropout(Textbook):
    """Returned weights are those that dropout has already thinned."""

    def returned(self, weight: float, multiplier: float) -> float:
        return weight * multiplier


class OtherRopePairing(TextbookLayer):
    """Interleaved pairs where half are meant, and the other way round."""

    def pair(self, d: int, rotary_dim: int, pairing: str) -> tuple[int, int]:
        return super().pair(d, rotary_dim, "half" if pairing == "interleaved" else "interleaved")


class KeyRowsPermutedWithN(TextbookLayer):
    """A port from interleaved to half pairs that permutes the key's rows with the number of query heads.

    The rows are brought to interleaved order as such a checkpoint stores them, with K heads, and back with N.
    """

    def load_weights(self, weights: dict[str, Array]) -> TextbookLayer:
        return super().load_weights({name: self._ported(name, x) for name, x in weights.items()})

    def _ported(self, name: str, x: Array) -> Array:
        c = self.config
        if c.rope is None or name != "k_proj.weight":
            return x
        interleaved = rearrange(x, "(K two half) E -> (K half two) E", K=c.num_kv_heads, two=2)
        heads = c.num_heads if len(x) % (2 * c.num_heads) == 0 else c.num_kv_heads  # or it could not be reshaped
        return rearrange(interleaved, "(N half two) E -> (N two half) E", N=heads, two=2)


class PositionsWithoutOffset(TextbookLayer):
    """Queries turned at 0 .. T - 1, whatever the offset."""

    def __call__(self, query: Array, *args: Any, positions: Any = None, **keywords: Any) -> tuple[Array, Array]:
        positions = np.arange(query.shape[1]) if positions is None else positions
        return super().__call__(query, *args, positions=positions, **keywords)


class NormAfterRope(TextbookLayer):
    """RoPE before QK-norm: invisible while the norm's weights are one, or equal in pairs."""

    def normed_then_turned(self, x: Array, name: str, positions: Array) -> Array:
        return self.normed(self.turned(x, positions), name)


class NormWithoutPlusOne(TextbookLayer):
    """Gemma's norm weights used as they are stored."""

    def norm_weight(self, weight: float, kind: str) -> float:
        return weight


class BiasForgotten(TextbookLayer):
    """A port that leaves the projections' biases behind."""

    def load_weights(self, weights: dict[str, Array]) -> TextbookLayer:
        return super().load_weights({name: x for name, x in weights.items() if not name.endswith(".bias")})


KERNELS: tuple[type[Textbook], ...] = (
    TiledHeads, DividedByK, ValueGroupedDifferently, TopLeftCausal, WindowOneMore, WindowOneLess, WindowLeaksFuture,
    ChunkRoundsToZero, ScaleForgotten, ScaleIgnored, ScaleFromValue, SoftcapAfterMask, SoftcapBeforeScale,
    InvertedMask, FloatMaskAsBoolean, MinimumIsMasked, EmptyRowIsMean, EmptyRowIsNaN, SinkInNumerator, SinkIgnored,
    SinkPerKVHead, WeightsAfterDropout,
)  # fmt: skip
LAYERS: tuple[type[TextbookLayer], ...] = (
    OtherRopePairing, KeyRowsPermutedWithN, PositionsWithoutOffset, NormAfterRope, NormWithoutPlusOne, BiasForgotten,
)  # fmt: skip

"""Mutants of a layer: projections, QK-norm, and where RoPE rotates."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from conformance.reference.layer import ReferenceLayer

Array = np.ndarray


class OtherRopePairing(ReferenceLayer):
    """Interleaved pairs where half are meant, and the other way round."""

    def pair(self, d: int, rotary_dim: int, pairing: str) -> tuple[int, int]:
        return super().pair(d, rotary_dim, "half" if pairing == "interleaved" else "interleaved")


class AlwaysHalfPairs(ReferenceLayer):
    """One pairing, whatever the config says."""

    def pair(self, d: int, rotary_dim: int, pairing: str) -> tuple[int, int]:
        return super().pair(d, rotary_dim, "half")


class AlwaysInterleavedPairs(ReferenceLayer):
    """The other one, whatever the config says."""

    def pair(self, d: int, rotary_dim: int, pairing: str) -> tuple[int, int]:
        return super().pair(d, rotary_dim, "interleaved")


class RotatedBackwards(ReferenceLayer):
    """The sign of sin swapped, for keys alone: for both it could not be seen."""

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        return super().normed_then_rotated(x, name, -positions if name == "k" else positions, length)


class OnlyQueriesRotated(ReferenceLayer):
    """Keys left as they are."""

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        return self.normed(x, name) if name == "k" else super().normed_then_rotated(x, name, positions, length)


class ValuesRotated(ReferenceLayer):
    """RoPE on values as well."""

    def heads(self, *args: Any) -> tuple[Array, Array, Array]:
        q, k, v = super().heads(*args)
        R, fits = self.config.rotary_dim, v.shape[-1] == q.shape[-1]
        return q, k, self.rotated(v, args[4], args[5]) if fits and R else v


class PositionsWithoutOffset(ReferenceLayer):
    """Queries rotated at 0 .. T - 1, whatever the offset."""

    def __call__(self, query: Array, *args: Any, positions: Any = None, **keywords: Any) -> tuple[Array, Array]:
        positions = np.arange(query.shape[1]) if positions is None else positions
        return super().__call__(query, *args, positions=positions, **keywords)


class FirstRowsPositionsForAll(ReferenceLayer):
    """The batch's first row gives every row its positions."""

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        first = np.broadcast_to(positions[:1], positions.shape)
        return super().normed_then_rotated(x, name, first, length)


class PositionsFromOne(ReferenceLayer):
    """Queries counted from 1, keys from 0."""

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        return super().normed_then_rotated(x, name, positions + (name == "q"), length)


class GivenPositionsIgnored(ReferenceLayer):
    """Explicit positions are accepted and not used."""

    def __call__(self, *args: Any, positions: Any = None, key_positions: Any = None, **keywords: Any) -> Any:
        return super().__call__(*args, **keywords)


class KeysRotatedByIndex(ReferenceLayer):
    """Self-attention with positions given for its queries, whose keys are rotated by 0 .. S - 1."""

    def default_key_positions(self, positions: Any) -> Any:
        return None


class AnglesIn16Bit(ReferenceLayer):
    """Angles computed in bfloat16, which has no odd numbers past 256."""

    def angle(self, position: float, frequency: float) -> float:
        return float(ml_dtypes.bfloat16(position)) * frequency


class FrequenciesIn16Bit(ReferenceLayer):
    """Frequencies cast to float16 with the rest of a model's buffers."""

    def angle(self, position: float, frequency: float) -> float:
        return position * float(np.float16(frequency))


class WholeHeadRotated(ReferenceLayer):
    """A partial rotary that rotates every dimension."""

    def rotated(self, x: Array, positions: Array, length: int) -> Array:
        rope = self.config.rope
        if rope is None or rope.rotary_dim is None or rope.scaling is not None:
            return super().rotated(x, positions, length)
        half, out = x.shape[-1] // 2, x.copy()
        for b, i, d in np.ndindex(x.shape[0], x.shape[2], half):
            angle = positions[b, i] * rope.theta ** (-2 * d / x.shape[-1])
            first, second = self.pair(d, x.shape[-1], rope.pairing)
            u, w = x[b, :, i, first], x[b, :, i, second]
            out[b, :, i, first] = u * math.cos(angle) - w * math.sin(angle)
            out[b, :, i, second] = w * math.cos(angle) + u * math.sin(angle)
        return out


class LastDimensionsRotated(ReferenceLayer):
    """A partial rotary at the end of the head instead of its start."""

    def rotated(self, x: Array, positions: Array, length: int) -> Array:
        shift = x.shape[-1] - self.config.rotary_dim
        return np.roll(super().rotated(np.roll(x, -shift, axis=-1), positions, length), shift, axis=-1)


class NormAfterRope(ReferenceLayer):
    """RoPE before QK-norm: invisible while the norm's weights are one, or equal in pairs."""

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        return self.normed(self.rotated(x, positions, length), name)


class NormWithoutPlusOne(ReferenceLayer):
    """Gemma's norm weights used as they are stored."""

    def norm_weight(self, weight: float, kind: str) -> float:
        return weight


class NormPlusOneAlways(ReferenceLayer):
    """1 + w where w is meant."""

    def norm_weight(self, weight: float, kind: str) -> float:
        return 1 + weight


class NormOfQueriesOnly(ReferenceLayer):
    """Keys are not normed."""

    def normed(self, x: Array, name: str) -> Array:
        return x if name == "k" else super().normed(x, name)


class NormWithQueryWeights(ReferenceLayer):
    """Keys normed with the queries' weights, where these fit."""

    def normed(self, x: Array, name: str) -> Array:
        return super().normed(x, "q" if self.config.qk_norm != "rms_full" else name)


class NormSubtractsMean(ReferenceLayer):
    """LayerNorm where RMSNorm is meant."""

    def rms(self, vector: Array, weight: Array, kind: str) -> list[float]:
        return super().rms(vector - vector.mean(), weight, kind)


class NormOfEachHeadAlone(ReferenceLayer):
    """A norm over the whole projection made head by head."""

    def normed(self, x: Array, name: str) -> Array:
        if self.config.qk_norm != "rms_full":
            return super().normed(x, name)
        weight = self.weights[f"{name}_norm.weight"].reshape(x.shape[1], 1, -1)
        return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.config.qk_norm_eps) * weight)


class NormWithoutEpsilon(ReferenceLayer):
    """x / rms(x) with nothing under the root."""

    def rms(self, vector: Array, weight: Array, kind: str) -> list[float]:
        root = math.sqrt(math.fsum(v * v for v in vector) / len(vector))
        return [v / root * self.norm_weight(w, kind) for v, w in zip(vector, weight, strict=True)]


class KeyAndValueSwapped(ReferenceLayer):
    """Called as Keras is: query, value, key."""

    def __call__(
        self, query: Array, key: Any = None, value: Any = None, mask: Any = None, **keywords: Any
    ) -> tuple[Array, Array]:
        return super().__call__(query, value, key, mask, **keywords)


class OutputBiasPerHead(ReferenceLayer):
    """The output's bias added once for each head, as a sum over heads that each hold it."""

    def joined(self, context: Array) -> Array:
        extra = self.weights.get("o_proj.bias", np.zeros(1)) * (context.shape[1] - 1)
        return np.asarray(super().joined(context) + extra)


class HeadsJoinedAcrossTokens(ReferenceLayer):
    """(B, N, T, Hv) reshaped to (B, T, N * Hv) without moving the heads' axis."""

    def joined(self, context: Array) -> Array:
        B, N, T, Hv = context.shape
        return super().joined(context.reshape(B, T, N, Hv).swapaxes(1, 2))

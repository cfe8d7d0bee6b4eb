"""The layer one number at a time: projections, QK-norm and RoPE around the kernel, each decision a method."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel
from conformance.reference.rope import ReferenceRope
from gqa_spec import AttentionConfig

Array = np.ndarray


class ReferenceLayer:
    """A layer in float64 from a config and canonical weights."""

    kernel: Any = ReferenceKernel()
    rope: Any = ReferenceRope()

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.weights: dict[str, Array] = {}

    def load_weights(self, weights: dict[str, Array]) -> ReferenceLayer:
        self.weights = {name: x.astype(np.float64) for name, x in weights.items()}
        return self

    def pair(self, d: int, rotary_dim: int, pairing: str) -> tuple[int, int]:
        """The two dimensions that frequency d rotates."""
        return (d, d + rotary_dim // 2) if pairing == "half" else (2 * d, 2 * d + 1)

    def norm_weight(self, weight: float, kind: str) -> float:
        return 1 + weight if kind == "rms_plus_one" else weight

    def normed_then_rotated(self, x: Array, name: str, positions: Array, length: int) -> Array:
        if self.config.qk_norm_after_rope:
            return self.normed(self.rotated(x, positions, length), name)
        return self.rotated(self.normed(x, name), positions, length)

    def scaled(self, q: Array, positions: Array) -> Array:
        """q (B, N, T, H) times the factor of its position."""
        if self.config.query_scale is None:
            return q
        beta, length = self.config.query_scale
        factor = np.array([[1 + beta * math.log(1 + p // length) for p in row] for row in positions.tolist()])
        return q * factor[:, None, :, None]

    def gated(self, context: Array, query: Array) -> Array:
        """context (B, N, T, Hv) times the sigmoid of its gate."""
        if not self.config.output_gate:
            return context
        gate = self.projected("gate_proj", query, self.config.num_heads)
        return context * np.vectorize(lambda x: 1 / (1 + math.exp(-x)))(gate)

    def normed(self, x: Array, name: str) -> Array:
        """x (B, heads, length, H) after QK-norm: per head, or over all heads of a token."""
        kind = self.config.qk_norm
        if kind is None:
            return x
        out, weight = np.empty_like(x), self.weights[f"{name}_norm.weight"]
        for b, i in np.ndindex(x.shape[0], x.shape[2]):
            vectors = [x[b, :, i].reshape(-1)] if kind == "rms_full" else list(x[b, :, i])
            out[b, :, i] = np.reshape([self.rms(v, weight, kind) for v in vectors], x[b, :, i].shape)
        return out

    def rms(self, vector: Array, weight: Array, kind: str) -> list[float]:
        rms = math.sqrt(math.fsum(v * v for v in vector) / len(vector) + self.config.qk_norm_eps)
        return [v / rms * self.norm_weight(w, kind) for v, w in zip(vector, weight, strict=True)]

    def rotated(self, x: Array, positions: Array, length: int) -> Array:
        """x (B, heads, length, H) rotated at positions (B, length)."""
        rope, out, R = self.config.rope, x.copy(), self.config.rotary_dim
        if rope is None:
            return x
        frequencies = [self.rope.frequency(rope, d, R, length) for d in range(R // 2)]
        factor = self.rope.attention_factor(rope.scaling)
        for b, n, i, d in np.ndindex(*x.shape[:3], R // 2):
            angle = self.angle(float(positions[b, i]), frequencies[d])
            cos, sin = factor * math.cos(angle), factor * math.sin(angle)
            first, second = self.pair(d, R, rope.pairing)
            u, w = x[b, n, i, first], x[b, n, i, second]
            out[b, n, i, first], out[b, n, i, second] = u * cos - w * sin, w * cos + u * sin
        return out

    def angle(self, position: float, frequency: float) -> float:
        return position * frequency

    def projected(self, name: str, x: Array, heads: int) -> Array:
        """(B, length, width) -> (B, heads, length, size)."""
        y = np.tensordot(x, self.weights[f"{name}.weight"], (2, 1)) + self.weights.get(f"{name}.bias", 0.0)
        return np.stack(np.split(y, heads, axis=2), axis=1)

    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        mask: Array | None = None,
        *,
        positions: Any = None,
        key_positions: Any = None,
        offset: Any = None,
        rope_length: int | None = None,
    ) -> tuple[Array, Array]:
        c = self.config
        if key is None and key_positions is None:
            key_positions = self.default_key_positions(positions)
        key = query if key is None else key
        value = key if value is None else value
        B, T, S = query.shape[0], query.shape[1], key.shape[1]
        starts = np.broadcast_to(S - T if offset is None else offset, (B,))
        q_places = np.broadcast_to(starts[:, None] + np.arange(T) if positions is None else positions, (B, T))
        k_places = np.broadcast_to(np.arange(S) if key_positions is None else key_positions, (B, S))
        q, k, v = self.heads(query, key, value, q_places, k_places, S if rope_length is None else rope_length)
        context, weights = self.attended(q, k, v, mask, offset=offset, chunk=c.chunk)
        return self.joined(self.gated(context, query)), weights

    def default_key_positions(self, positions: Any) -> Any:
        """Of self-attention: those of the queries, where these are given."""
        return positions

    def heads(
        self, query: Array, key: Array, value: Array, q_places: Array, k_places: Array, length: int
    ) -> tuple[Array, Array, Array]:
        """What the kernel is given: projected, normed, rotated."""
        c = self.config
        q = self.normed_then_rotated(self.projected("q_proj", query, c.num_heads), "q", q_places, length)
        k = self.normed_then_rotated(self.projected("k_proj", key, c.num_kv_heads), "k", k_places, length)
        return self.scaled(q, q_places), k, self.projected("v_proj", value, c.num_kv_heads)

    def attended(self, q: Array, k: Array, v: Array, mask: Any, *, offset: Any, chunk: Any) -> tuple[Array, Array]:
        c, sinks = self.config, self.weights.get("sinks")
        return self.kernel(
            q,
            k,
            v,
            mask,
            causal=c.causal,
            window=c.window,
            chunk=chunk,
            offset=offset,
            scale=c.scale,
            softcap=c.softcap,
            sinks=sinks,
        )

    def joined(self, context: Array) -> Array:
        """(B, N, T, Hv) -> (B, T, D)."""
        return self.projected("o_proj", np.concatenate(list(context.swapaxes(0, 1)), axis=-1), 1)[:, 0]

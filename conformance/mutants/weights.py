"""Mutants of ports: weights that were stored in one layout and read as another. Most keep every shape."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from conformance.reference.layer import ReferenceLayer

Array = np.ndarray


class Port(ReferenceLayer):
    """A port that does nothing wrong yet: `ported` is called for each tensor by name."""

    def load_weights(self, weights: dict[str, Array]) -> ReferenceLayer:
        return super().load_weights({name: self.ported(name, x) for name, x in weights.items()})

    def ported(self, name: str, x: Array) -> Array:
        return x

    def heads_of(self, name: str) -> int:
        """How many heads a projection or norm has; 0 for the output's."""
        c = self.config
        return {"q": c.num_heads, "k": c.num_kv_heads, "v": c.num_kv_heads}.get(name[0], 0)

    def interleaved(self, x: Array, heads: int) -> Array:
        """Rows of half pairs in the order of interleaved ones."""
        return rearrange(x, "(N two half) ... -> (N half two) ...", N=heads, two=2)


class KeyRowsPermutedWithN(Port):
    """A port from interleaved to half pairs that permutes the key's rows with the number of query heads.

    The rows are brought to interleaved order as such a checkpoint stores them, with K heads, and back with N.
    """

    def ported(self, name: str, x: Array) -> Array:
        c = self.config
        if c.rope is None or name != "k_proj.weight":
            return x
        heads = c.num_heads if len(x) % (2 * c.num_heads) == 0 else c.num_kv_heads  # or it could not be reshaped
        return rearrange(self.interleaved(x, c.num_kv_heads), "(N half two) E -> (N two half) E", N=heads, two=2)


class RowsNotPermuted(Port):
    """Rows of interleaved pairs, as Meta and GGUF store them, used for half pairs."""

    def ported(self, name: str, x: Array) -> Array:
        if self.config.rope is None or name not in ("q_proj.weight", "k_proj.weight"):
            return x
        return self.interleaved(x, self.heads_of(name))


class BiasNotPermuted(Port):
    """Weights brought to the other pairing, their biases not."""

    def ported(self, name: str, x: Array) -> Array:
        if self.config.rope is None or name not in ("q_proj.bias", "k_proj.bias"):
            return x
        return self.interleaved(x, self.heads_of(name))


class NormNotPermuted(Port):
    """Projections brought to the other pairing, the weights of their norms not."""

    def ported(self, name: str, x: Array) -> Array:
        if self.config.rope is None or not name.endswith("_norm.weight"):
            return x
        return self.interleaved(x, len(x) // self.config.head_dim)


class PartialRotaryPermutedWhole(Port):
    """All dimensions of a head permuted where only the first ones are rotated."""

    def ported(self, name: str, x: Array) -> Array:
        H, R = self.config.head_dim, self.config.rotary_dim
        if R in (0, H) or name not in ("q_proj.weight", "k_proj.weight"):
            return x
        heads = rearrange(x, "(N H) D -> N H D", H=H)
        rotated, rest = np.split(heads, [R], axis=1)
        stored = np.concatenate([self.back(rotated, True), rest], axis=1)
        return np.asarray(rearrange(self.back(stored, False), "N H D -> (N H) D"))

    def back(self, heads: Array, interleave: bool) -> Array:
        pattern = "N (two half) D -> N (half two) D" if interleave else "N (half two) D -> N (two half) D"
        return rearrange(heads, pattern, two=2)


class BiasForgotten(Port):
    """A port that leaves the projections' biases behind."""

    def load_weights(self, weights: dict[str, Array]) -> ReferenceLayer:
        return super().load_weights({name: x for name, x in weights.items() if not name.endswith(".bias")})


class SinksForgotten(Port):
    """A port that leaves the sinks behind."""

    def load_weights(self, weights: dict[str, Array]) -> ReferenceLayer:
        return super().load_weights({name: x for name, x in weights.items() if name != "sinks"})


class QueryHeadsStrided(Port):
    """Query heads stored as x-transformers has them, (G K), and read as (K G)."""

    def ported(self, name: str, x: Array) -> Array:
        return (
            rearrange(x, "(K G H) ... -> (G K H) ...", K=self.config.num_kv_heads, H=self.config.head_dim)
            if (name.startswith("q_proj"))
            else x
        )


class OutputColumnsStrided(Port):
    """The output projection's columns in the other order of heads."""

    def ported(self, name: str, x: Array) -> Array:
        c = self.config
        return (
            rearrange(x, "D (K G V) -> D (G K V)", K=c.num_kv_heads, V=c.v_head_dim) if name == "o_proj.weight" else x
        )


class GroupsReadAsBlocks(Port):
    """One fused tensor of groups [q .. q, k, v], as Megatron has it, read as [Q; K; V]."""

    def load_weights(self, weights: dict[str, Array]) -> ReferenceLayer:
        c, read = self.config, dict(weights)
        names = [f"{name}_proj.weight" for name in "qkv"]
        if c.kv_dim == c.embed_dim:
            grouped = [rearrange(weights[name], "(K rows) D -> K rows D", K=c.num_kv_heads) for name in names]
            fused = np.concatenate(list(np.concatenate(grouped, axis=1)))
            ends = np.cumsum([len(weights[name]) for name in names])[:-1]
            read |= zip(names, np.split(fused, ends), strict=True)
        return super().load_weights(read)


class ReshapedNotTransposed(Port):
    """A kernel (D, N, H), as Flax and Keras have it, reshaped to (N H, D) instead of transposed."""

    def ported(self, name: str, x: Array) -> Array:
        return x.T.reshape(x.shape) if name in ("q_proj.weight", "k_proj.weight", "v_proj.weight") else x


class OutputReshapedNotTransposed(Port):
    """A kernel (N, H, D) of the output reshaped to (D, N H)."""

    def ported(self, name: str, x: Array) -> Array:
        return x.T.reshape(x.shape) if name == "o_proj.weight" else x


class NormPlusOneTwice(Port):
    """Norm weights of a file that holds 1 + w, taken for w."""

    def ported(self, name: str, x: Array) -> Array:
        return x + 1 if name.endswith("_norm.weight") and self.config.qk_norm == "rms_plus_one" else x


class RoundedTo16Bit(Port):
    """Weights that passed through bfloat16 on the way."""

    def ported(self, name: str, x: Array) -> Array:
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16).astype(x.dtype)

"""The attention layer: projections, QK-norm and RoPE around the kernel. Weights under their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Integer

from gqa_jax import cache as cache_
from gqa_jax import rope
from gqa_jax.attention import attend, attention_stages, grouped_query_attention
from gqa_jax.cache import KVCache
from gqa_jax.linear import linear, parameter, project
from gqa_jax.masks import Offset
from gqa_jax.norm import qk_norm
from gqa_jax.precision import compute_dtype
from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, symbolic_shapes, weight_shapes
from gqa_spec.settings import RotationSettings


class GroupedQueryAttention(nnx.Module):
    """Grouped-query attention with N query heads and K key/value heads; K = N is multi-head, K = 1 multi-query.

    embed_dim, num_heads, num_kv_heads (N when None) and dropout may be given by position; every further field of
    `AttentionConfig` by keyword. rngs draws the initial values ("params") and dropout ("dropout"); dtype is that of
    inputs and outputs (param_dtype when None), param_dtype that of the weights. A new layer is in training mode.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int = DERIVED,
        dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        **settings: Any,
    ) -> None:
        self.config = config = AttentionConfig(
            embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, dropout=dropout, **settings
        )
        self.param_dtype = available(param_dtype)
        self.dtype = self.param_dtype if dtype is None else available(dtype)
        shapes = weight_shapes(config)
        self.q_proj = linear(shapes["q_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.k_proj = linear(shapes["k_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.v_proj = linear(shapes["v_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.o_proj = linear(shapes["o_proj.weight"], config.out_bias, rngs, self.dtype, self.param_dtype)
        if config.qk_norm is not None:
            self.q_norm = _NormWeight(shapes["q_norm.weight"], config.qk_norm, self.param_dtype)
            self.k_norm = _NormWeight(shapes["k_norm.weight"], config.qk_norm, self.param_dtype)
        if config.sinks:
            self.sinks = nnx.Param(jnp.zeros(shapes["sinks"], self.param_dtype))
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs if config.dropout > 0 else None)

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """A layer from a config; options are rngs, dtype and param_dtype."""
        return cls(**{name: getattr(config, name) for name in CONFIG_FIELDS}, **options)

    def train(self, **attributes: Any) -> Self:
        super().train(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def eval(self, **attributes: Any) -> Self:
        super().eval(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def __call__(
        self,
        query: Float[Array, "B T D"],
        key: Float[Array, "B S E"] | None = None,
        value: Float[Array, "B S E"] | None = None,
        mask: Array | None = None,
        *,
        positions: Array | None = None,
        key_positions: Array | None = None,
        offset: Offset = None,
        rope_length: int | None = None,
        need_weights: bool = True,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B N T S"] | None]:
        """Attend from query to key and value (key defaults to query, value to key).

        mask and offset as for `grouped_query_attention`. positions (T,) or (B, T) and key_positions (S,) or (B, S) only
        rotate; they default to i + offset and j. rope_length (positions, S by default) fixes frequencies that depend on
        the length. Returns output and, with need_weights, weights per head before dropout, in the input's dtype.
        Raises ValueError for shapes and settings, TypeError for dtypes.
        """
        stages = self._heads(query, key, value, mask, positions, key_positions, offset, rope_length)
        q, k, v = _newest(stages)
        context, weights = grouped_query_attention(
            q, k, v, mask, **self._kernel_settings(q, k, offset), need_weights=need_weights
        )
        return self._output(context), weights

    def trace(
        self,
        query: Float[Array, "B T D"],
        key: Float[Array, "B S E"] | None = None,
        value: Float[Array, "B S E"] | None = None,
        mask: Array | None = None,
        *,
        positions: Array | None = None,
        key_positions: Array | None = None,
        offset: Offset = None,
        rope_length: int | None = None,
    ) -> dict[str, Array]:
        """Every stage that is on, by name and in order: q_proj, k_proj, v_proj, q_norm, k_norm, q_rope, k_rope
        (B, heads, length, head size), scores, capped, masked, weights (B, N, T, S), context (B, N, T, Hv), output.
        """
        stages = self._heads(query, key, value, mask, positions, key_positions, offset, rope_length)
        q, k, v = _newest(stages)
        stages |= attention_stages(q, k, v, mask, **self._kernel_settings(q, k, offset))
        return stages | {"output": self._output(stages["context"])}

    def init_cache(self, batch_size: int, max_length: int, *, rolling: bool = False, dtype: Any = None) -> KVCache:
        """An empty cache for `extend`: max_length tokens for each row, or with rolling the last `window` of them.

        dtype is the layer's when None. Raises ValueError for a layer that is not causal self-attention, and for rolling
        without a window.
        """
        checks.init_cache(self.config, batch_size, max_length, rolling)
        cache = cache_.empty(self.config, batch_size, max_length, rolling, self.dtype if dtype is None else dtype)
        checks.floating("dtype", cache.keys)
        return cache

    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, *, lengths: Integer[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Append x's tokens to the cache and attend to all so far, as one whole pass would.

        Token i of row b stands at cache.length[b] + i. lengths: how many tokens of each row are real (right-padded), T
        by default; the rest are not stored and give 0. Returns the output and the longer cache; the given one stays
        as it was. Raises ValueError where a row has no room; under jit, where it cannot, that row is NaN from then on.
        """
        count = self._count(x, cache, lengths)
        T = x.shape[1]
        real = (jnp.arange(T) < count[:, None])[..., None]
        positions = None if self.config.rope is None else cache.length[:, None] + jnp.arange(T)
        tokens = x if lengths is None else jnp.where(real, x, 0)
        q, k, v = _newest(self._heads(tokens, None, None, None, positions, positions, None, cache.rope_length))
        longer, keys, values = cache_.appended(cache, k, v, count)
        settings = self._kernel_settings(q, keys, None) | cache_.visibility(cache, T, self.config)
        context = attend(q, keys.astype(q.dtype), values.astype(q.dtype), **settings, clean=True)
        output = jnp.where(real, self._output(context), 0)
        return jnp.where(cache_.fits(cache, count)[:, None, None], output, jnp.nan), longer

    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy canonical weights into place, all or none.

        Raises ValueError that names every missing, unexpected and misshapen one, TypeError for a narrowing cast.
        """
        arrays = {name: np.asarray(x) for name, x in mapping.items()}
        checks.weights(arrays, weight_shapes(self.config), symbolic_shapes(self.config), str(self.param_dtype))
        for name, x in arrays.items():
            variable, transposed = parameter(self, name)
            variable.set_value(jnp.array(x.T if transposed else x, self.param_dtype))  # also into an abstract module
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Canonical names -> NumPy arrays, copied."""
        exported = {}
        for name in weight_shapes(self.config):
            variable, transposed = parameter(self, name)
            x = np.asarray(variable[...])
            exported[name] = np.array(x.T if transposed else x, order="C")
        return exported

    def _heads(
        self, query: Any, key: Any, value: Any, mask: Any, positions: Any, key_positions: Any, offset: Any, length: Any
    ) -> dict[str, Array]:
        """The stages before the kernel, heads split."""
        key = query if key is None else key
        value = key if value is None else value
        rotation = {"positions": positions, "key_positions": key_positions, "offset": offset, "rope_length": length}
        config = self.config
        checks.layer_call(config, str(self.dtype), query, key, value, mask, Array, RotationSettings(**rotation))
        T, S = query.shape[1], key.shape[1]
        stages = {
            "q_proj": _split(project(self.q_proj, query), config.num_heads),
            "k_proj": _split(project(self.k_proj, key), config.num_kv_heads),
            "v_proj": _split(project(self.v_proj, value), config.num_kv_heads),
        }
        if config.qk_norm is not None:
            for name, module in (("q", self.q_norm), ("k", self.k_norm)):
                weight = module.weight[...]
                stages[f"{name}_norm"] = qk_norm(stages[f"{name}_proj"], weight, config.qk_norm, config.qk_norm_eps)
        if config.rope is not None:
            q, k, _ = _newest(stages)
            length = S if length is None else length
            if positions is None:
                positions = jnp.asarray(S - T if offset is None else offset, dtype=int)[..., None] + jnp.arange(T)
            key_positions = jnp.arange(S) if key_positions is None else key_positions
            stages["q_rope"] = rope.rotate(q, positions, config.rope, length)
            stages["k_rope"] = rope.rotate(k, key_positions, config.rope, length)
        return stages

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens each row appends, once everything that is not traced has been checked."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        checks.extend(self.config, x.shape, cache.keys.shape, cache.values.shape, cache.rolling)
        B, T = x.shape[:2]
        if lengths is None:
            count = jnp.full(B, T)
        else:
            checks.cache_lengths(lengths, Array, B)
            if not isinstance(lengths, jax.core.Tracer):
                checks.cache_lengths_in_chunk(lengths.tolist(), T)
            count = jnp.clip(lengths.astype(int), 0, T)
        if not (cache.rolling or any(isinstance(n, jax.core.Tracer) for n in (cache.length, count))):
            checks.cache_room(cache.capacity, cache.length.tolist(), count.tolist())
        return count

    def _kernel_settings(self, q: Array, k: Array, offset: Offset) -> dict[str, Any]:
        config = self.config
        return {
            "causal": config.causal,
            "window": config.window,
            "chunk": config.chunk,
            "offset": offset,
            "scale": config.scale,
            "softcap": config.softcap,
            "sinks": self.sinks[...] if config.sinks else None,
            "dropout_multiplier": self._dropout_multiplier((*q.shape[:3], k.shape[2])),
        }

    def _dropout_multiplier(self, shape: tuple[int, ...]) -> Array | None:
        if self.dropout.deterministic or self.config.dropout == 0:
            return None
        return self.dropout(jnp.ones(shape, compute_dtype(self.dtype)))

    def _output(self, context: Float[Array, "B N T Hv"]) -> Float[Array, "B T D"]:
        B, N, T, Hv = context.shape
        return project(self.o_proj, context.swapaxes(1, 2).reshape(B, T, N * Hv))


GroupQueryAttention = GroupedQueryAttention


def _split(x: Float[Array, "B T W"], heads: int) -> Float[Array, "B heads T size"]:
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def _newest(stages: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """query, key and value as they are after the last stage so far."""
    q, k = (next(stages[f"{n}_{s}"] for s in ("rope", "norm", "proj") if f"{n}_{s}" in stages) for n in ("q", "k"))
    return q, k, stages["v_proj"]


class _NormWeight(nnx.Module):
    """Where `q_norm.weight` or `k_norm.weight` lives; SPEC 17: at the identity."""

    def __init__(self, shape: tuple[int, ...], kind: str, dtype: Any) -> None:
        self.weight = nnx.Param(jnp.full(shape, 0 if kind == "rms_plus_one" else 1, dtype))


def available(dtype: Any) -> jnp.dtype[Any]:
    """The dtype that arrays really get: JAX answers float64 with a warning and float32 unless x64 is on."""
    return jnp.empty((), dtype).dtype

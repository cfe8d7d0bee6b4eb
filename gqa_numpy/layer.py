"""The attention layer: projections, QK-norm and RoPE around the kernel. Weights under their canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Integer

from gqa_numpy import cache as cache_
from gqa_numpy import rope
from gqa_numpy.attention import attend, attention_stages, grouped_query_attention
from gqa_numpy.cache import KVCache
from gqa_numpy.gradients import Gradients, grouped_query_attention_vjp
from gqa_numpy.linear import linear
from gqa_numpy.masks import Offset
from gqa_numpy.norm import qk_norm, qk_norm_vjp
from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, symbolic_shapes, weight_shapes
from gqa_spec.settings import RotationSettings

Array = np.ndarray


class GroupedQueryAttention:
    """Grouped-query attention with N query heads and K key/value heads; K = N is multi-head, K = 1 multi-query.

    embed_dim, num_heads, num_kv_heads (N when None) and dropout may be given by position; every further field of
    `AttentionConfig` by keyword. rng draws the initial values and dropout; dtype is that of weights, inputs and
    outputs. `parameters` maps canonical names to arrays. A new layer is in training mode.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int = DERIVED,
        dropout: float = 0.0,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float64,
        **settings: Any,
    ) -> None:
        self.config = AttentionConfig(
            embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, dropout=dropout, **settings
        )
        self.rng = np.random.default_rng() if rng is None else rng
        self.dtype = np.dtype(dtype)
        self.training = True
        self.parameters = {
            name: _initial(name, shape, self.config, self.rng).astype(self.dtype)
            for name, shape in weight_shapes(self.config).items()
        }

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """A layer from a config; options are rng and dtype."""
        return cls(**{name: getattr(config, name) for name in CONFIG_FIELDS}, **options)

    def train(self) -> Self:
        self.training = True
        return self

    def eval(self) -> Self:
        self.training = False
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
        by default; the rest are not stored and give 0. Returns the output and the longer cache, in the storage of the
        given one, which is spent: extending it again raises ValueError, as does a row without room.
        """
        count = self._count(x, cache, lengths)
        T = x.shape[1]
        real = (np.arange(T) < count[:, None])[..., None]
        positions = None if self.config.rope is None else cache.length[:, None] + np.arange(T)
        tokens = x if lengths is None else np.where(real, x, self.dtype.type(0))
        q, k, v = _newest(self._heads(tokens, None, None, None, positions, positions, None, cache.rope_length))
        settings = cache_.visibility(cache, T, self.config)
        longer, keys, values = cache_.appended(cache, k, v, count)
        settings = self._kernel_settings(q, keys, None) | settings
        context = attend(q, keys.astype(q.dtype, copy=False), values.astype(q.dtype, copy=False), **settings)
        return np.where(real, self._output(context), self.dtype.type(0)), longer

    def vjp(
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
    ) -> tuple[Float[Array, "B T D"], Callable[[Float[Array, "B T D"]], Gradients]]:
        """The output, and a function from its gradient to those of query, key, value, a floating mask and every weight,
        by name. key and value have gradients of their own also where they default to query and key; they add up.
        float32 and float64 layers.
        """
        stages = self._heads(query, key, value, mask, positions, key_positions, offset, rope_length)
        q, k, v = _newest(stages)
        context, attention_vjp = grouped_query_attention_vjp(q, k, v, mask, **self._kernel_settings(q, k, offset))
        key_input = query if key is None else key
        inputs = {"q": query, "k": key_input, "v": key_input if value is None else value}
        T, S = query.shape[1], key_input.shape[1]
        places = dict(zip("qk", _positions(T, S, positions, key_positions, offset), strict=True))
        length = S if rope_length is None else rope_length

        def vjp(d_output: Float[Array, "B T D"]) -> Gradients:
            d_joined, gradients = self._projection_vjp("o_proj", _joined_heads(context), d_output)
            heads = attention_vjp(_split(d_joined, self.config.num_heads))
            gradients |= {name: heads[name] for name in ("mask", "sinks") if name in heads}
            for name, argument in (("q", "query"), ("k", "key"), ("v", "value")):
                d_heads = heads[argument]
                if f"{name}_rope" in stages and self.config.rope is not None:
                    d_heads = rope.rotate_vjp(d_heads, places[name], self.config.rope, length)
                if f"{name}_norm" in stages and self.config.qk_norm is not None:
                    weight, kind, eps = f"{name}_norm.weight", self.config.qk_norm, self.config.qk_norm_eps
                    projected = stages[f"{name}_proj"]
                    d_heads, gradients[weight] = qk_norm_vjp(projected, self.parameters[weight], kind, eps, d_heads)
                d_input, weights = self._projection_vjp(f"{name}_proj", inputs[name], _joined_heads(d_heads))
                gradients |= weights | {argument: d_input}
            return gradients

        return self._output(context), vjp

    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy canonical weights into place, all or none.

        Raises ValueError that names every missing, unexpected and misshapen one, TypeError for a narrowing cast.
        """
        arrays = {name: np.asarray(x) for name, x in mapping.items()}
        checks.weights(arrays, weight_shapes(self.config), symbolic_shapes(self.config), str(self.dtype))
        self.parameters = {name: arrays[name].astype(self.dtype) for name in self.parameters}
        return self

    def export_weights(self) -> dict[str, Array]:
        """Canonical names -> NumPy arrays, copied."""
        return {name: x.copy() for name, x in self.parameters.items()}

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
            "q_proj": _split(self._project("q_proj", query), config.num_heads),
            "k_proj": _split(self._project("k_proj", key), config.num_kv_heads),
            "v_proj": _split(self._project("v_proj", value), config.num_kv_heads),
        }
        if config.qk_norm is not None:
            for name in ("q", "k"):
                weight = self.parameters[f"{name}_norm.weight"]
                stages[f"{name}_norm"] = qk_norm(stages[f"{name}_proj"], weight, config.qk_norm, config.qk_norm_eps)
        if config.rope is not None:
            q, k, _ = _newest(stages)
            length = S if length is None else length
            positions, key_positions = _positions(T, S, positions, key_positions, offset)
            stages["q_rope"] = rope.rotate(q, positions, config.rope, length)
            stages["k_rope"] = rope.rotate(k, key_positions, config.rope, length)
        return stages

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens each row appends, once everything has been checked."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        checks.cache_not_consumed(cache.spent)
        checks.extend(self.config, x.shape, cache.keys.shape, cache.values.shape, cache.rolling)
        B, T = x.shape[:2]
        if lengths is not None:
            checks.cache_lengths(lengths, Array, B)
            checks.cache_lengths_in_chunk(lengths.tolist(), T)
        count = np.full(B, T) if lengths is None else lengths
        if not cache.rolling:
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
            "sinks": self.parameters.get("sinks"),
            "dropout_multiplier": self._dropout_multiplier((*q.shape[:3], k.shape[2])),
        }

    def _dropout_multiplier(self, shape: tuple[int, ...]) -> Array | None:
        p = self.config.dropout
        if not self.training or p == 0:
            return None
        return ((self.rng.random(shape) >= p) / (1 - p)).astype(self.dtype)

    def _project(self, name: str, x: Array) -> Array:
        return linear(x, self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"))

    def _projection_vjp(self, name: str, x: Array, d_y: Array) -> tuple[Array, Gradients]:
        """The gradient of a projection's input, and those of its weight and bias."""
        tokens, d_tokens = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):  # of a poisoned token
            gradients = {f"{name}.weight": d_tokens.T @ tokens}
        if f"{name}.bias" in self.parameters:
            gradients[f"{name}.bias"] = d_tokens.sum(axis=0)
        return d_y @ self.parameters[f"{name}.weight"], gradients

    def _output(self, context: Float[Array, "B N T Hv"]) -> Float[Array, "B T D"]:
        return self._project("o_proj", _joined_heads(context))


GroupQueryAttention = GroupedQueryAttention


def _split(x: Float[Array, "B T W"], heads: int) -> Float[Array, "B heads T size"]:
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def _newest(stages: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """query, key and value as they are after the last stage so far."""
    q, k = (next(stages[f"{n}_{s}"] for s in ("rope", "norm", "proj") if f"{n}_{s}" in stages) for n in ("q", "k"))
    return q, k, stages["v_proj"]


def _positions(T: int, S: int, positions: Any, key_positions: Any, offset: Offset) -> tuple[Array, Array]:
    """Where queries and keys are rotated to: i + offset and j unless given."""
    if positions is None:
        positions = np.asarray(S - T if offset is None else offset)[..., None] + np.arange(T)
    return positions, np.arange(S) if key_positions is None else key_positions


def _joined_heads(x: Float[Array, "B heads T size"]) -> Float[Array, "B T W"]:
    B, heads, T, size = x.shape
    return x.swapaxes(1, 2).reshape(B, T, heads * size)


def _initial(name: str, shape: tuple[int, ...], config: AttentionConfig, rng: np.random.Generator) -> Array:
    """SPEC 17: projections uniform in +-fan_in ** -0.5, biases and sinks 0, norms at the identity."""
    if name.endswith("_norm.weight"):
        return np.full(shape, 0.0 if config.qk_norm == "rms_plus_one" else 1.0)
    if not name.endswith("_proj.weight"):
        return np.zeros(shape)
    return rng.uniform(-1, 1, shape) * shape[1] ** -0.5

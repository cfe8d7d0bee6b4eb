"""The attention layer: projections, QK-norm and RoPE around the kernel. Weights under their canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Integer

from gqa_numpy import cache as cache_
from gqa_numpy import decoding, rope
from gqa_numpy.attention import attend, attention, stages_of
from gqa_numpy.cache import KVCache, consume
from gqa_numpy.gradients import Gradients, attention_vjp
from gqa_numpy.layer_gradients import LayerGradients
from gqa_numpy.linear import gated, initial, join_heads, linear, split_heads
from gqa_numpy.masks import Offset, query_positions
from gqa_numpy.norm import qk_norm
from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, layer_config, symbolic_shapes, weight_shapes
from gqa_spec.settings import KernelSettings, RotationSettings
from gqa_spec.stages import kernel_inputs

Array = np.ndarray


class GroupedQueryAttention:
    """Attention with N query heads and K key/value heads (Ainslie et al. 2023, arXiv 2305.13245).

    ```
    query heads     0  1  2  3       0  1  2  3       0  1  2  3
                    │  │  │  │       └┬─┘  └┬─┘       └──┴┬─┴──┘
    KV heads        0  1  2  3        0     1             0
                    MHA, K = N       GQA, 1 < K < N   MQA, K = 1
    ```

    `parameters` maps the canonical names of the weights (SPEC 16) to arrays. A new layer is in training mode.

    Args:
        embed_dim: D, the width of query and output.
        num_heads: N, the number of query heads.
        num_kv_heads: K, the number of key/value heads, N by default; K divides N.
        dropout: Probability with which an attention weight is dropped in training mode, never by `extend`. The
            attribute of this name may be set.
        rng: Draws the initial values and dropout; `numpy.random.default_rng()` by default.
        dtype: Of weights, inputs and outputs.
        **settings: Every further field of `AttentionConfig`.

    Raises:
        ValueError: For a number out of range or settings that contradict each other.
        TypeError: For the wrong kind of value.
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
        self.config = layer_config(embed_dim, num_heads, num_kv_heads, dropout, settings)
        self.rng = np.random.default_rng() if rng is None else rng
        self.dtype = np.dtype(dtype)
        self.training, self.dropout = True, dropout
        self.parameters = {
            name: initial(name, shape, self.rng, plus_one=self.config.qk_norm == "rms_plus_one").astype(self.dtype)
            for name, shape in weight_shapes(self.config).items()
        }

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """Make a layer from a config.

        Args:
            config: The settings.
            **options: rng and dtype.
        """
        return cls(**{name: getattr(config, name) for name in CONFIG_FIELDS}, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.summary()}, dtype={self.dtype})"

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
        """Attend from query to key and value.

        Args:
            query: (B, T, D).
            key: (B, S, E); query by default.
            value: (B, S, E); key by default.
            mask: bool (True = may attend) or floating (added to the scores, -inf = may not), (T, S) or broadcastable
                to (B, N, T, S).
            positions: By which RoPE rotates queries, (T,) or (B, T); i + offset by default. Causal, window and chunk do
                not use them.
            key_positions: By which RoPE rotates keys, (S,) or (B, S); `positions` by default where key is not given,
                else 0 to S - 1.
            offset: Position of the first query, an integer or one for each row, (B,); S - T by default.
            rope_length: The length on which RoPE's frequencies depend with dynamic NTK and LongRoPE; S by default.
            need_weights: Whether to return the weights. Without them, a faster kernel is used.

        Returns:
            The output (B, T, D) and the weights of each head before dropout (B, N, T, S), or None for these, in the
            input's dtype.

        Raises:
            ValueError: For a wrong shape or setting (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        rotation = RotationSettings.of_call(key, positions, key_positions, offset, rope_length)
        stages = self._stages(query, key, value, mask, rotation)
        q, k, v = kernel_inputs(stages)
        context, weights = attention(
            q, k, v, mask, self._kernel_settings(q, k, offset, training=self.training), need_weights=need_weights
        )
        return self._output(context, stages), weights

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
        """Compute the layer plainly and return every stage that is on, by name and in order.

        Args:
            query, key, value, mask, positions, key_positions, offset, rope_length: As in a call of the layer.

        Returns:
            q_proj, k_proj, v_proj, q_norm, k_norm, q_rope, k_rope (B, heads, length, head size), scores, capped,
            masked, weights (B, N, T, S), logsumexp (B, N, T), context (B, N, T, Hv), output (B, T, D).

        Raises:
            ValueError: For a wrong shape or setting (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        rotation = RotationSettings.of_call(key, positions, key_positions, offset, rope_length)
        stages = self._stages(query, key, value, mask, rotation)
        q, k, v = kernel_inputs(stages)
        stages |= stages_of(q, k, v, mask, self._kernel_settings(q, k, offset, training=self.training))
        return stages | {"output": self._output(stages["context"], stages)}

    def init_cache(self, batch_size: int, max_length: int, *, rolling: bool = False, dtype: Any = None) -> KVCache:
        """Make an empty cache for `extend`.

        Args:
            batch_size: B, the number of rows.
            max_length: How many tokens each row can have.
            rolling: Whether to keep only the last `window` tokens of each row; it then never overflows.
            dtype: Of keys and values; the layer's by default.

        Raises:
            ValueError: For a layer that is not causal self-attention, and for rolling without a window.
            TypeError: For a wrong type or dtype.
        """
        checks.init_cache(self.config, batch_size, max_length, rolling)
        cache = cache_.empty(
            self.config, batch_size, max_length, rolling, self.dtype if dtype is None else dtype, self._heads("k_proj")
        )
        checks.floating("dtype", cache.keys)
        return cache

    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, *, lengths: Integer[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Append tokens to a cache and attend to all so far, as one whole pass would.

        Args:
            x: The tokens (B, T, D). The position of token i in row b is cache.length[b] + i.
            cache: The cache so far. Its storage is written, and it is consumed: it cannot be extended again.
            lengths: How many tokens of each row are real (right-padded), (B,); T by default. The others are not stored,
                and their output is 0.

        Returns:
            The output (B, T, D) and the new cache, on the storage of the old one.

        Raises:
            ValueError: For a wrong shape, a consumed cache, or a full row.
            TypeError: For a wrong type or dtype.
        """
        count = self._count(x, cache, lengths)
        consume(cache)
        return self.append(x, cache, count)

    def append(
        self, x: Float[Array, "B T D"], cache: KVCache, count: Integer[Array, "B"]
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """`extend` of a cache that has been checked and consumed: the first count[b] tokens of each row are real."""
        T = x.shape[1]
        real = (np.arange(T) < count[:, None])[..., None]
        positions = cache.length[:, None] + np.arange(T) if self.config.uses_positions else None
        rotation = RotationSettings(positions=positions, key_positions=positions, rope_length=cache.rope_length)
        tokens = x if real.all() else np.where(real, x, self.dtype.type(0))
        stages = self._stages(tokens, None, None, None, rotation)
        q, k, v = kernel_inputs(stages)
        mask, offset, chunk = decoding.kernel_arguments(cache, self.config, T)
        new_cache, keys, values = decoding.append(cache, k, v, count)
        settings = replace(self._kernel_settings(q, keys, offset, training=False), chunk=chunk)
        context = attend(q, keys.astype(q.dtype, copy=False), values.astype(q.dtype, copy=False), mask, settings)
        return np.where(real, self._output(context, stages), self.dtype.type(0)), new_cache

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
        """Compute the output, and a function that gives the gradients, for float32 and float64 layers.

        Args:
            query, key, value, mask, positions, key_positions, offset, rope_length: As in a call of the layer.

        Returns:
            The output (B, T, D), and a function from its gradient to those of query, key, value, a floating mask and
            every weight, by name. key and value have gradients of their own also where they default to query and key:
            add them up.

        Raises:
            ValueError: For a wrong shape or setting (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        rotation = RotationSettings.of_call(key, positions, key_positions, offset, rope_length)
        stages = self._stages(query, key, value, mask, rotation)
        q, k, v = kernel_inputs(stages)
        context, kernel_vjp = attention_vjp(q, k, v, mask, self._kernel_settings(q, k, offset, training=self.training))
        key = query if key is None else key
        backward = LayerGradients(
            config=self.config,
            parameters=self.parameters,
            inputs={"query": query, "key": key, "value": key if value is None else value},
            stages=stages,
            context=context,
            kernel_vjp=kernel_vjp,
            positions=dict(zip(("query", "key"), _positions(query.shape[1], key.shape[1], rotation), strict=True)),
            rope_length=key.shape[1] if rope_length is None else rope_length,
        )
        return self._output(context, stages), backward.of

    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy weights into place, all or none.

        Args:
            mapping: Canonical names to arrays.

        Returns:
            The layer itself.

        Raises:
            ValueError: Names every missing, unexpected and misshapen weight.
            TypeError: For a cast that could lose bits.
        """
        arrays = {name: np.asarray(x) for name, x in mapping.items()}
        checks.weights(arrays, weight_shapes(self.config), symbolic_shapes(self.config), str(self.dtype))
        self.parameters = {name: arrays[name].astype(self.dtype) for name in self.parameters}
        return self

    def export_weights(self) -> dict[str, Array]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays.
        """
        return {name: x.copy() for name, x in self.parameters.items()}

    def _stages(self, query: Any, key: Any, value: Any, mask: Any, rotation: RotationSettings) -> dict[str, Array]:
        """The stages before the kernel, heads split."""
        key = query if key is None else key
        value = key if value is None else value
        config = self.config
        checks.layer_call(
            config, str(self.dtype), query, key, value, mask, Array, rotation, num_heads=self._heads("q_proj")
        )
        q, k, v = self._project("q_proj", query), self._project("k_proj", key), self._project("v_proj", value)
        checks.projected_widths(config, q.shape[-1], k.shape[-1], v.shape[-1])
        stages = {
            "q_proj": split_heads(q, config.head_dim),
            "k_proj": split_heads(k, config.head_dim),
            "v_proj": split_heads(v, config.v_head_dim),
        }
        if config.output_gate:
            stages["gate"] = split_heads(self._project("gate_proj", query), config.v_head_dim)
        if config.uses_positions:
            positions, key_positions = _positions(query.shape[1], key.shape[1], rotation)
        if not config.qk_norm_after_rope:
            self._norm(stages)
        if config.rope is not None:
            q, k, _ = kernel_inputs(stages)
            length = key.shape[1] if rotation.rope_length is None else rotation.rope_length
            stages["q_rope"] = rope.rotate(q, positions, config.rope, length)
            stages["k_rope"] = rope.rotate(k, key_positions, config.rope, length)
        if config.qk_norm_after_rope:
            self._norm(stages)
        if config.query_scale is not None:
            q, _, _ = kernel_inputs(stages)
            stages["q_scale"] = (q * rope.query_factor(positions, *config.query_scale, dtype=q.dtype)).astype(q.dtype)
        return stages

    def _norm(self, stages: dict[str, Array]) -> None:
        """Add the stages of QK-norm, where there is one."""
        config, (q, k, _) = self.config, kernel_inputs(stages)
        for name, x in (("q", q), ("k", k)):
            if config.qk_norm is not None:
                weight = self.parameters[f"{name}_norm.weight"]
                stages[f"{name}_norm"] = qk_norm(x, weight, config.qk_norm, config.qk_norm_eps)

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens are real in each row, after every check."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        checks.floating("x", x)
        checks.same_dtype("x", x, "the layer's", str(self.dtype))
        checks.cache_not_consumed(cache.consumed)
        keys, values, heads = cache.keys.shape, cache.values.shape, self._heads("k_proj")
        checks.extend(self.config, x.shape, keys, values, cache.rolling, num_kv_heads=heads)
        count = decoding.real_tokens(x, lengths)
        cache.check_free_slots(count.tolist())
        return count

    def _kernel_settings(self, q: Array, k: Array, offset: Offset, *, training: bool) -> KernelSettings:
        config = self.config
        return KernelSettings(
            causal=config.causal,
            window=config.window,
            chunk=config.chunk,
            offset=offset,
            scale=config.scale,
            softcap=config.softcap,
            sinks=self.parameters.get("sinks"),
            dropout_multiplier=self._dropout_multiplier((*q.shape[:3], k.shape[2])) if training else None,
        )

    def _dropout_multiplier(self, shape: tuple[int, ...]) -> Array | None:
        p = self.dropout
        if p == 0:
            return None
        return ((self.rng.random(shape) >= p) / (1 - p)).astype(self.dtype)

    def _heads(self, name: str) -> int:
        """Of q_proj or k_proj: fewer than the config's where it is pruned."""
        return len(self.parameters[f"{name}.weight"]) // self.config.head_dim

    def _project(self, name: str, x: Array) -> Array:
        return linear(x, self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"))

    def _output(self, context: Float[Array, "B N T Hv"], stages: Mapping[str, Array]) -> Float[Array, "B T D"]:
        return self._project("o_proj", join_heads(gated(context, stages.get("gate"))))


GroupQueryAttention = GroupedQueryAttention


def _positions(T: int, S: int, rotation: RotationSettings) -> tuple[Array, Array]:
    """By which positions RoPE rotates queries and keys: i + offset and j unless given."""
    positions, key_positions = rotation.positions, rotation.key_positions
    positions = query_positions(T, S, rotation.offset) if positions is None else positions
    return positions, np.arange(S) if key_positions is None else key_positions

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
from gqa_jax import decoding, rope
from gqa_jax.arrays import as_array, check_sharding, known
from gqa_jax.attention import attention, stages_of
from gqa_jax.cache import KVCache
from gqa_jax.dropout import Dropout
from gqa_jax.linear import join_heads, linear, parameter, project, set_parameter, split_heads
from gqa_jax.masks import Offset, query_positions
from gqa_jax.norm import qk_norm
from gqa_jax.parts import MeshPart, extended
from gqa_jax.precision import compute_dtype
from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, layer_config, symbolic_shapes, weight_shapes
from gqa_spec.settings import KernelSettings, RotationSettings
from gqa_spec.stages import kernel_inputs


class GroupedQueryAttention(nnx.Module):
    """Attention with N query heads and K key/value heads (Ainslie et al. 2023, arXiv 2305.13245).

    ```
    query heads     0  1  2  3       0  1  2  3       0  1  2  3
                    │  │  │  │       └┬─┘  └┬─┘       └──┴┬─┴──┘
    KV heads        0  1  2  3        0     1             0
                    MHA, K = N       GQA, 1 < K < N   MQA, K = 1
    ```

    The canonical names of the weights are those of SPEC 16. A new layer is in training mode.

    Args:
        embed_dim: D, the width of query and output.
        num_heads: N, the number of query heads.
        num_kv_heads: K, the number of key/value heads, N by default; K divides N.
        dropout: Probability with which an attention weight is dropped in training mode, never by `extend`. The
            `rate` of the attribute of this name may be set; with 0 here, give it `rngs` too.
        rngs: Draws the initial values (stream `params`) and dropout (stream `dropout`).
        dtype: Of inputs and outputs; param_dtype by default.
        param_dtype: Of the weights.
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
        rngs: nnx.Rngs,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        **settings: Any,
    ) -> None:
        self.config = config = layer_config(embed_dim, num_heads, num_kv_heads, dropout, settings)
        self.param_dtype = available(param_dtype)
        self.dtype = self.param_dtype if dtype is None else available(dtype)
        shapes = weight_shapes(config)
        self.q_proj = linear(shapes["q_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.k_proj = linear(shapes["k_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.v_proj = linear(shapes["v_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        self.o_proj = linear(shapes["o_proj.weight"], config.out_bias, rngs, self.dtype, self.param_dtype)
        if config.output_gate:
            self.gate_proj = linear(shapes["gate_proj.weight"], config.qkv_bias, rngs, self.dtype, self.param_dtype)
        if config.qk_norm is not None:
            self.q_norm = _NormWeight(shapes["q_norm.weight"], config.qk_norm, self.param_dtype)
            self.k_norm = _NormWeight(shapes["k_norm.weight"], config.qk_norm, self.param_dtype)
        if config.sinks:
            self.sinks = nnx.Param(jnp.zeros(shapes["sinks"], self.param_dtype))
        self.dropout = Dropout(config.dropout, rngs)
        self.mesh_part: MeshPart | None = None  # set by `parallel`

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """Make a layer from a config.

        Args:
            config: The settings.
            **options: rngs, dtype and param_dtype.
        """
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
        settings = self._kernel_settings(q, k, offset)
        compute = attention if self.mesh_part is None else self.mesh_part.attention
        context, weights = compute(q, k, v, as_array(mask), settings, need_weights=need_weights)
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
        stages |= stages_of(q, k, v, mask, self._kernel_settings(q, k, offset))
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
        make = cache_.empty if self.mesh_part is None else self.mesh_part.init_cache
        dtype = self.dtype if dtype is None else dtype
        cache = make(self.config, batch_size, max_length, rolling, dtype, num_kv_heads=self._cached_heads())
        checks.floating("dtype", cache.keys)
        return cache

    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, *, lengths: Integer[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Append tokens to a cache and attend to all so far, as one whole pass would.

        Args:
            x: The tokens (B, T, D). The position of token i in row b is cache.length[b] + i.
            cache: The cache so far. It stays as it is and may be extended again.
            lengths: How many tokens of each row are real (right-padded), (B,); T by default. The others are not stored,
                and their output is 0.

        Returns:
            The output (B, T, D) and the new cache.

        Raises:
            ValueError: For a wrong shape or a full row. Under jit, where a full row cannot
                raise, its output is NaN from then on.
            TypeError: For a wrong type or dtype.
        """
        x, lengths = as_array(x), as_array(lengths)
        count = self._count(x, cache, lengths)
        T = x.shape[1]
        token = jnp.arange(T)[None]
        real = (token < count[:, None])[..., None]
        positions = cache.length[:, None] + token if self.config.uses_positions else None
        rotation = RotationSettings(positions=positions, key_positions=positions, rope_length=cache.rope_length)
        tokens = x if lengths is None else jnp.where(real, x, 0)
        stages = self._stages(tokens, None, None, None, rotation)
        q, k, v = kernel_inputs(stages)
        settings = self._kernel_settings(q, k, None, training=False)
        compute = extended if self.mesh_part is None else self.mesh_part.extend
        context, new_cache = compute(q, k, v, cache, count, settings, self.config)
        output = jnp.where(real, self._output(context, stages), 0)
        return jnp.where(decoding.fits(cache, count)[:, None, None], output, jnp.nan), new_cache

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
        checks.weights(arrays, self._canonical_shapes(), symbolic_shapes(self.config), str(self.param_dtype))
        for name, x in arrays.items():
            set_parameter(self, name, x.__getitem__, self.param_dtype)
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays.
        """
        exported = {}
        for name in self._canonical_shapes():
            variable, transposed = parameter(self, name)
            x = np.asarray(variable[...])
            exported[name] = np.array(x.T if transposed else x, order="C")
        return exported

    def _canonical_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights of one layer; layers stacked by `nnx.vmap` have no canonical weights."""
        shapes = weight_shapes(self.config)
        for name, shape in shapes.items():
            got: Any = parameter(self, name)[0].get_value()
            if got.ndim != len(shape):
                remedy = "take one layer of the stack"
                raise ValueError(f"{name}: expected {len(shape)} axes, got {got.shape}: {remedy}")
        return shapes

    def _stages(self, query: Any, key: Any, value: Any, mask: Any, rotation: RotationSettings) -> dict[str, Array]:
        """The stages before the kernel, heads split."""
        key = query if key is None else key
        value = key if value is None else value
        query, key, value, mask = (as_array(x) for x in (query, key, value, mask))
        rotation, config = jax.tree.map(as_array, rotation), self.config
        check_sharding("query", query)
        heads = self._local_heads(self.q_proj, config.num_heads)
        checks.layer_call(config, str(self.dtype), query, key, value, mask, Array, rotation, num_heads=heads)
        q, k, v = project(self.q_proj, query), project(self.k_proj, key), project(self.v_proj, value)
        checks.projected_widths(config, q.shape[-1], k.shape[-1], v.shape[-1])
        stages = {
            "q_proj": split_heads(q, config.head_dim),
            "k_proj": split_heads(k, config.head_dim),
            "v_proj": split_heads(v, config.v_head_dim),
        }
        if config.output_gate:
            stages["gate"] = split_heads(project(self.gate_proj, query), config.v_head_dim)
        if config.uses_positions:
            positions, key_positions = _positions(query.shape[1], key.shape[1], rotation)
        if not config.qk_norm_after_rope:
            stages |= self._normed(stages)
        if config.rope is not None:
            q, k, _ = kernel_inputs(stages)
            length = key.shape[1] if rotation.rope_length is None else rotation.rope_length
            stages["q_rope"] = rope.rotate(q, positions, config.rope, length)
            stages["k_rope"] = rope.rotate(k, key_positions, config.rope, length)
        if config.qk_norm_after_rope:
            stages |= self._normed(stages)
        if config.query_scale is not None:
            q, _, _ = kernel_inputs(stages)
            factor = rope.query_factor(positions, *config.query_scale, dtype=q.dtype)
            stages["q_scale"] = (q.astype(factor.dtype) * factor).astype(q.dtype)
        return stages

    def _normed(self, stages: dict[str, Array]) -> dict[str, Array]:
        """The stages of QK-norm, where there is one."""
        config = self.config
        if config.qk_norm is None:
            return {}
        inputs = zip("qk", (self.q_norm, self.k_norm), kernel_inputs(stages)[:2], strict=True)
        return {f"{n}_norm": qk_norm(x, m.weight[...], config.qk_norm, config.qk_norm_eps) for n, m, x in inputs}

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens are real in each row, after every check that needs no traced value."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        keys, values, heads = cache.keys.shape, cache.values.shape, self._cached_heads()
        checks.extend(self.config, x.shape, keys, values, cache.rolling, num_kv_heads=heads)
        count = decoding.real_tokens(x, lengths)
        cache.check_free_slots(x.shape[1] if lengths is None else known(lengths))
        return count

    def _cached_heads(self) -> int:
        """KV heads: fewer than the config's where k_proj is pruned; more where each device of a mesh keeps its own."""
        heads = self._local_heads(self.k_proj, self.config.num_kv_heads)
        return heads if self.mesh_part is None else self.mesh_part.cached_heads(heads)

    def _local_heads(self, projection: nnx.Module, heads: int) -> int:
        """Of q_proj or k_proj: fewer than the config's heads where it is pruned. Those where it has no kernel."""
        kernel = getattr(projection, "kernel", None)
        return heads if kernel is None else kernel.shape[-1] // self.config.head_dim

    def _kernel_settings(self, q: Array, k: Array, offset: Offset, *, training: bool = True) -> KernelSettings:
        config = self.config
        return KernelSettings(
            causal=config.causal,
            window=config.window,
            chunk=config.chunk,
            offset=offset,
            scale=config.scale,
            softcap=config.softcap,
            sinks=self.sinks[...] if config.sinks else None,
            dropout_multiplier=self._dropout_multiplier((*q.shape[:3], k.shape[2])) if training else None,
        )

    def _dropout_multiplier(self, shape: tuple[int, ...]) -> Array | None:
        if self.dropout.deterministic or self.dropout.rate == 0:
            return None
        return self.dropout(jnp.ones(shape, compute_dtype(self.dtype)))

    def _output(self, context: Float[Array, "B N T Hv"], stages: Mapping[str, Array]) -> Float[Array, "B T D"]:
        if "gate" in stages:
            dtype = compute_dtype(context.dtype)
            opened = jax.nn.sigmoid(stages["gate"].astype(dtype))
            context = (context.astype(dtype) * opened).astype(context.dtype)
        return project(self.o_proj, join_heads(context))


GroupQueryAttention = GroupedQueryAttention


def _positions(T: int, S: int, rotation: RotationSettings) -> tuple[Array, Array]:
    """By which positions RoPE rotates queries and keys: i + offset and j unless given."""
    positions, key_positions = rotation.positions, rotation.key_positions
    positions = query_positions(T, S, rotation.offset) if positions is None else positions
    return positions, jnp.arange(S) if key_positions is None else key_positions


class _NormWeight(nnx.Module):
    """A module with one `weight`, so that it has its canonical name; SPEC 17: at the identity."""

    def __init__(self, shape: tuple[int, ...], kind: str, dtype: Any) -> None:
        self.weight = nnx.Param(jnp.full(shape, 0 if kind == "rms_plus_one" else 1, dtype))


def available(dtype: Any) -> jnp.dtype[Any]:
    """The dtype that arrays really get: unless x64 is on, JAX makes float32 of float64, with a warning."""
    return jnp.empty((), dtype).dtype

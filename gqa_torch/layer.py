"""The attention layer: projections, QK-norm and RoPE around the kernel. Weights under their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Unpack

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor as Array
from torch import nn

from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, AttentionSettings, layer_config, symbolic_shapes, weight_shapes
from gqa_spec.placement import local_config
from gqa_spec.settings import KernelSettings, RotationSettings
from gqa_spec.stages import kernel_inputs
from gqa_torch import cache as cache_
from gqa_torch import parameters, rope
from gqa_torch.attention import attend, attention, stages_of
from gqa_torch.cache import KVCache
from gqa_torch.decoding import DecodeStep, Extension, append, check_free_slots, fits, kernel_arguments, real_tokens
from gqa_torch.masks import Offset, query_positions
from gqa_torch.norm import Weight
from gqa_torch.parts import ContextPart, TensorPart
from gqa_torch.precision import autocast_dtype, compute_dtype, widened
from gqa_torch.stages import kernel_settings, placed


class GroupedQueryAttention(nn.Module):
    """Attention with N query heads and K key/value heads (Ainslie et al. 2023, arXiv 2305.13245).

    ```
    query heads     0  1  2  3       0  1  2  3       0  1  2  3
                    │  │  │  │       └┬─┘  └┬─┘       └──┴┬─┴──┘
    KV heads        0  1  2  3        0     1             0
                    MHA, K = N       GQA, 1 < K < N   MQA, K = 1
    ```

    The keys of `state_dict` are the canonical names of the weights (SPEC 16). A new layer is in training mode.

    Args:
        embed_dim: D, the width of query and output.
        num_heads: N, the number of query heads.
        num_kv_heads: K, the number of key/value heads, N by default; K divides N.
        dropout: Probability with which an attention weight is dropped in training mode; later `layer.dropout.p`.
        device: Where the parameters are.
        dtype: Of the parameters, and of inputs and outputs except under autocast; PyTorch's default dtype by default.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **settings: Unpack[AttentionSettings],
    ) -> None:
        super().__init__()
        self.config = config = layer_config(embed_dim, num_heads, num_kv_heads, dropout, settings)
        shapes = weight_shapes(config)

        def linear(name: str) -> nn.Linear:
            fan_out, fan_in = shapes[f"{name}.weight"]
            return nn.Linear(fan_in, fan_out, bias=f"{name}.bias" in shapes, device=device, dtype=dtype)

        def empty(name: str) -> nn.Parameter:
            return nn.Parameter(torch.empty(shapes[name], device=device, dtype=dtype))

        self.q_proj, self.k_proj = linear("q_proj"), linear("k_proj")
        self.v_proj, self.o_proj = linear("v_proj"), linear("o_proj")
        if config.output_gate:
            self.gate_proj = linear("gate_proj")
        if config.qk_norm is not None:
            initial = 0.0 if config.qk_norm == "rms_plus_one" else 1.0
            self.q_norm, self.k_norm = (Weight(empty(f"{name}_norm.weight"), initial) for name in "qk")
        self.sinks = empty("sinks") if config.sinks else None
        self.dropout = nn.Dropout(dropout)
        self.tensor_part: TensorPart | None = None
        self.context_part: ContextPart | None = None
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """Make a layer from a config.

        Args:
            config: The settings.
            **options: device and dtype.
        """
        return cls(**{name: getattr(config, name) for name in CONFIG_FIELDS}, **options)

    def extra_repr(self) -> str:
        return self.config.summary()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the canonical weights again (SPEC 17). Other parameters, an adapter's for instance, stay as they are."""
        for name in weight_shapes(self.config):
            if name.endswith("_norm.weight"):
                getattr(self, name.partition(".")[0]).reset_parameters()
            elif parameters.has(self, name):
                parameters.draw_projection(self, name)

    def forward(
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
        extension: Extension | None = None,
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
            need_weights: Whether to return the weights. Without them, a faster kernel is used; at T = 1024 it takes
                about a tenth of the time.
            extension: Only `extend` gives it: then query alone is read, and keys and values come from a cache.

        Returns:
            The output (B, T, D) and the weights of each head before dropout (B, N, T, S), or None for these, in the
            input's dtype.

        Raises:
            ValueError: For a wrong shape or setting (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        if extension is not None:
            return self._append(query, extension), None
        rotation = RotationSettings.of_call(key, positions, key_positions, offset, rope_length)
        if self.context_part is not None:
            rotation = self.context_part.rotation(query, key, mask, rotation)
        stages = self._stages(query, key, value, mask, rotation)
        q, k, v = kernel_inputs(stages)
        if self.context_part is not None:
            k, v = self.context_part.whole(k), self.context_part.whole(v)
        settings = self._kernel_settings(q, k, rotation.offset)
        context, weights = attention(q, k, v, mask, settings, need_weights=need_weights)
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

    def init_cache(
        self, batch_size: int, max_length: int, *, rolling: bool = False, dtype: torch.dtype | None = None
    ) -> KVCache:
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
        like = self._floating()
        device = next(self.parameters(), torch.empty(0)).device if like is None else like.device
        if dtype is None:
            dtype = autocast_dtype(torch.get_default_dtype() if like is None else like.dtype, device)
        cache = cache_.empty(
            self.config, batch_size, max_length, rolling, dtype, num_kv_heads=self.local_kv_heads(), device=device
        )
        checks.floating("dtype", cache.keys)
        return cache

    @torch.no_grad()
    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, *, lengths: Integer[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Append tokens to a cache and attend to all so far, as one whole pass would, without gradients and dropout.

        Args:
            x: The tokens (B, T, D). The position of token i in row b is cache.length[b] + i.
            cache: The cache so far. Its storage is written, and it is consumed: it cannot be extended again.
            lengths: How many tokens of each row are real (right-padded), (B,); T by default. The others are not stored,
                and their output is 0.

        Returns:
            The output (B, T, D) and the new cache, on the storage of the old one.

        Raises:
            ValueError: For a wrong shape, a consumed cache, or a full row. Under torch.compile, where a row
                without free slots cannot raise, its output is NaN from then on.
            TypeError: For a wrong type or dtype.
        """
        count = self._count(x, cache, lengths)
        x, _, _ = self._checked(x, None, None, None, RotationSettings())
        cache_.consume(cache)
        step = DecodeStep(x.shape[1], cache.length, count, lengths is not None, x.device)
        extension = Extension(cache, step)
        output, _ = self(x, need_weights=False, extension=extension)
        return output, extension.extended()

    def _append(self, x: Float[Array, "B T D"], extension: Extension) -> Float[Array, "B T D"]:
        """`extend` once its arguments are checked and the cache is consumed."""
        cache, step = extension.cache, extension.step
        tokens = x if step.real is None else torch.where(step.real, x, 0)
        stages, tables = self._project(tokens, tokens, tokens), None
        if self.config.rope is not None:
            tables = step.cos_sin((self.config.rope, self.config.rotary_dim, cache.rope_length), like=x)
        stages = self._place(stages, tables, tables, step.positions)
        q, k, v = kernel_inputs(stages)
        mask, offset, chunk = kernel_arguments(cache, self.config, step)
        extension.new_cache, keys, values = append(cache, k, v, step)
        settings = kernel_settings(self.config, self.sinks, offset, chunk, None)
        context = attend(q, keys.to(q.dtype), values.to(q.dtype), mask, settings, finite_keys=True)
        output = self._output(context, stages)
        output = output if step.real is None else torch.where(step.real, output, 0)
        fit = fits(cache, step)
        return output if fit is None else torch.where(fit.to(x.device)[:, None, None], output, torch.nan)

    @torch.no_grad()
    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy weights into place, all or none.

        Args:
            mapping: Canonical names to arrays or tensors.

        Returns:
            The layer itself.

        Raises:
            ValueError: Names every missing, unexpected and misshapen weight.
            TypeError: For a cast that could lose bits, and where an adapter or a quantized layer is in the place of a
                parameter. A parametrized or pruned one is written, the latter where its mask lets it.
        """
        parameters.load(self, mapping, weight_shapes(self.config), symbolic_shapes(self.config))
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays; of a parametrized or pruned parameter the value that the layer computes with.

        Raises:
            TypeError: Where an adapter or a quantized layer is in the place of a parameter.
        """
        return parameters.export(self, weight_shapes(self.config))

    def _stages(self, query: Any, key: Any, value: Any, mask: Any, rotation: RotationSettings) -> dict[str, Array]:
        """The stages before the kernel, heads split."""
        query, key, value = self._checked(query, key, value, mask, rotation)
        stages, config = self._project(query, key, value), self.config
        T, S = query.shape[1], key.shape[1]
        positions, key_positions = rotation.positions, rotation.key_positions
        if config.uses_positions and positions is None:
            positions = query_positions(T, S, rotation.offset, device=query.device)
        if config.rope is None:
            return self._place(stages, None, None, positions)
        key_positions = torch.arange(S, device=key.device) if key_positions is None else key_positions
        settings = (config.rope, config.rotary_dim, S if rotation.rope_length is None else rotation.rope_length)
        query_tables, key_tables = (rope.cos_sin(each, *settings, like=query) for each in (positions, key_positions))
        return self._place(stages, query_tables, key_tables, positions)

    def _place(self, stages: Any, query_tables: Any, key_tables: Any, positions: Any) -> dict[str, Array]:
        norms = None if self.config.qk_norm is None else (self.q_norm.weight, self.k_norm.weight)
        return placed(self.config, stages, norms, query_tables, key_tables, positions)

    def _checked(
        self, query: Any, key: Any, value: Any, mask: Any, rotation: RotationSettings
    ) -> tuple[Array, Array, Array]:
        """query, key and value, with their defaults and in autocast's dtype."""
        key = query if key is None else key
        value = key if value is None else value
        checks.array("query", query, Array)
        like = self._floating()
        own, device = (query.dtype, query.device) if like is None else (like.dtype, like.device)
        dtype = autocast_dtype(own, device)
        query, key, value = (x.to(dtype) if isinstance(x, Array) and x.dtype == own else x for x in (query, key, value))
        name, heads = str(dtype).removeprefix("torch."), self._local_heads()
        checks.layer_call(self.config, name, query, key, value, mask, Array, rotation, num_heads=heads)
        return query, key, value

    def _floating(self) -> nn.Parameter | None:
        """The parameter that has the layer's dtype and device; None where all projections are quantized."""
        return parameters.floating((self.q_proj, self.k_proj, self.v_proj, self.o_proj))

    def _local_config(self) -> AttentionConfig:
        """The config of the heads that this rank has."""
        return self.config if self.tensor_part is None else local_config(self.config, self.tensor_part.parts)

    def _local_heads(self) -> int | None:
        """Query heads of a mask for each head: the rank's own, unless `tensor_part` cuts the mask of all."""
        rows = None if self.tensor_part is not None else parameters.local_rows(self.q_proj)
        return None if rows is None else rows // self.config.head_dim

    def local_kv_heads(self) -> int:
        """The local number: fewer than the config's where k_proj is sharded or pruned by heads."""
        if self.tensor_part is not None:
            return self._local_config().num_kv_heads
        rows = parameters.local_rows(self.k_proj)
        return self.config.num_kv_heads if rows is None else rows // self.config.head_dim

    def _project(self, query: Array, key: Array, value: Array) -> dict[str, Array]:
        """Heads split."""
        config = self.config
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        checks.projected_widths(self._local_config(), q.shape[-1], k.shape[-1], v.shape[-1])
        stages = {
            "q_proj": q.unflatten(2, (-1, config.head_dim)).transpose(1, 2),
            "k_proj": k.unflatten(2, (-1, config.head_dim)).transpose(1, 2),
            "v_proj": v.unflatten(2, (-1, config.v_head_dim)).transpose(1, 2),
        }
        if config.output_gate:
            stages["gate"] = self.gate_proj(query).unflatten(2, (-1, config.v_head_dim)).transpose(1, 2)
        return stages

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens are real in each row, after every check that needs no traced value."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        checks.cache_not_consumed(cache.consumed)
        keys, values, heads = cache.keys.shape, cache.values.shape, self.local_kv_heads()
        checks.extend(self.config, x.shape, keys, values, cache.rolling, num_kv_heads=heads)
        count = real_tokens(x, lengths)
        check_free_slots(cache, count)
        return count

    def _kernel_settings(self, q: Array, k: Array, offset: Offset) -> KernelSettings:
        return kernel_settings(self.config, self.sinks, offset, self.config.chunk, self._dropout_multiplier(q, k))

    def _dropout_multiplier(self, q: Array, k: Array) -> Array | None:
        if not self.dropout.training or self.dropout.p == 0:
            return None
        heads = q.shape[1] if self.tensor_part is None else self.config.num_heads  # all are drawn alike on every rank
        drawn = self.dropout(q.new_ones(q.shape[0], heads, q.shape[2], k.shape[2], dtype=compute_dtype(q.dtype)))
        return drawn if self.tensor_part is None else self.tensor_part.of(drawn)

    def _output(self, context: Float[Array, "B N T Hv"], stages: Mapping[str, Array]) -> Float[Array, "B T D"]:
        if "gate" in stages:
            context = (widened(context) * widened(stages["gate"]).sigmoid()).to(context.dtype)
        return self.o_proj(context.transpose(1, 2).flatten(2))


GroupQueryAttention = GroupedQueryAttention

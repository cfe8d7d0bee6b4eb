"""The attention layer: projections, QK-norm and RoPE around the kernel. Weights under their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor as Array
from torch import nn

from gqa_spec import AttentionConfig, checks
from gqa_spec.config import CONFIG_FIELDS, DERIVED, symbolic_shapes, weight_shapes
from gqa_spec.settings import RotationSettings
from gqa_torch import cache as cache_
from gqa_torch import rope
from gqa_torch.attention import attend, attention_stages, grouped_query_attention
from gqa_torch.cache import Append, KVCache
from gqa_torch.masks import Offset, query_positions
from gqa_torch.norm import qk_norm
from gqa_torch.precision import autocast_dtype, compute_dtype

Tables = tuple[Array, Array]  # cos and sin


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention with N query heads and K key/value heads; K = N is multi-head, K = 1 multi-query.

    embed_dim, num_heads, num_kv_heads (N when None) and dropout may be given by position; every further field of
    `AttentionConfig` by keyword. device and dtype are those of the parameters; dtype is that of inputs and outputs
    too, except under autocast. The keys of `state_dict` are the canonical names. A new layer is in training mode.
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
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = config = AttentionConfig(
            embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, dropout=dropout, **settings
        )
        shapes = weight_shapes(config)

        def linear(name: str) -> nn.Linear:
            fan_out, fan_in = shapes[f"{name}.weight"]
            return nn.Linear(fan_in, fan_out, bias=f"{name}.bias" in shapes, device=device, dtype=dtype)

        def empty(name: str) -> nn.Parameter:
            return nn.Parameter(torch.empty(shapes[name], device=device, dtype=dtype))

        self.q_proj, self.k_proj = linear("q_proj"), linear("k_proj")
        self.v_proj, self.o_proj = linear("v_proj"), linear("o_proj")
        if config.qk_norm is not None:
            self.q_norm, self.k_norm = Weight(empty("q_norm.weight")), Weight(empty("k_norm.weight"))
        self.sinks = empty("sinks") if config.sinks else None
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: AttentionConfig, **options: Any) -> Self:
        """A layer from a config; options are device and dtype."""
        return cls(**{name: getattr(config, name) for name in CONFIG_FIELDS}, **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """SPEC 17: projections uniform in +-fan_in ** -0.5, biases and sinks 0, norms at the identity."""
        for name, parameter in self.named_parameters():
            if name.endswith("_norm.weight"):
                parameter.fill_(0.0 if self.config.qk_norm == "rms_plus_one" else 1.0)
            elif not name.endswith("_proj.weight"):
                parameter.zero_()
            else:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound)

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

    def init_cache(
        self, batch_size: int, max_length: int, *, rolling: bool = False, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache for `extend`: max_length tokens for each row, or with rolling the last `window` of them.

        dtype is the layer's when None. Raises ValueError for a layer that is not causal self-attention, and for rolling
        without a window.
        """
        checks.init_cache(self.config, batch_size, max_length, rolling)
        weight = self.q_proj.weight
        dtype = autocast_dtype(weight.dtype, weight.device) if dtype is None else dtype
        cache = cache_.empty(self.config, batch_size, max_length, rolling, dtype, weight.device)
        checks.floating("dtype", cache.keys)
        return cache

    @torch.no_grad()
    def extend(
        self, x: Float[Array, "B T D"], cache: KVCache, *, lengths: Integer[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Append x's tokens to the cache and attend to all so far, as one whole pass would, but without gradients.

        Token i of row b stands at cache.length[b] + i. lengths: how many tokens of each row are real (right-padded), T
        by default; the rest are not stored and give 0. Returns the output and the longer cache, in the storage of the
        given one, which is spent: extending it again raises ValueError, as does a row without room (under
        torch.compile, where it cannot, that row is NaN from then on).
        """
        count = self._count(x, cache, lengths)
        x, _, _ = self._checked(
            x, None, None, None, dict.fromkeys(("positions", "key_positions", "offset", "rope_length"))
        )
        step = Append(x.shape[1], cache.length, count, lengths is not None, x.device)
        return self.append(x, cache, step)

    def append(self, x: Float[Array, "B T D"], cache: KVCache, step: Append) -> tuple[Float[Array, "B T D"], KVCache]:
        """`extend` once its arguments are checked, by a step that all layers of a model share."""
        tokens = x if step.real is None else torch.where(step.real, x, 0)
        stages = self._projected(tokens, tokens, tokens)
        if self.config.rope is not None:
            tables = step.cos_sin((self.config.rope, self.config.rotary_dim, cache.rope_length), like=x)
            stages |= self._turned(stages, tables, tables)
        q, k, v = _newest(stages)
        visible = cache_.visibility(cache, self.config, step)
        longer, keys, values = cache_.appended(cache, k, v, step)
        settings = self._kernel_settings(q, keys, None) | visible
        context = attend(q, keys.to(q.dtype), values.to(q.dtype), **settings, clean=True)
        output = self._output(context)
        output = output if step.real is None else torch.where(step.real, output, 0)
        fits = cache_.fits(cache, step)
        return output if fits is None else torch.where(fits.to(x.device)[:, None, None], output, torch.nan), longer

    @torch.no_grad()
    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy canonical weights (arrays or tensors) into place, all or none.

        Raises ValueError that names every missing, unexpected and misshapen one, TypeError for a narrowing cast.
        """
        arrays = {name: x if isinstance(x, Array) else np.asarray(x) for name, x in mapping.items()}
        dtype = checks.dtype_name(self.q_proj.weight)
        checks.weights(arrays, weight_shapes(self.config), symbolic_shapes(self.config), dtype)
        for name, x in {name: tensor(x) for name, x in arrays.items()}.items():
            self.get_parameter(name).copy_(x)
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Canonical names -> NumPy arrays, copied."""
        return {name: array(self.get_parameter(name)) for name in weight_shapes(self.config)}

    def _heads(
        self, query: Any, key: Any, value: Any, mask: Any, positions: Any, key_positions: Any, offset: Any, length: Any
    ) -> dict[str, Array]:
        """The stages before the kernel, heads split."""
        rotation = {"positions": positions, "key_positions": key_positions, "offset": offset, "rope_length": length}
        query, key, value = self._checked(query, key, value, mask, rotation)
        stages, config = self._projected(query, key, value), self.config
        if config.rope is not None:
            T, S = query.shape[1], key.shape[1]
            positions = query_positions(T, S, offset, device=query.device) if positions is None else positions
            key_positions = torch.arange(S, device=key.device) if key_positions is None else key_positions
            settings = (config.rope, config.rotary_dim, S if length is None else length)
            tables = (rope.cos_sin(each, *settings, like=query) for each in (positions, key_positions))
            stages |= self._turned(stages, *tables)
        return stages

    def _checked(self, query: Any, key: Any, value: Any, mask: Any, rotation: dict[str, Any]) -> tuple[Array, ...]:
        """query, key and value with their defaults, as autocast's linear layers would take them."""
        key = query if key is None else key
        value = key if value is None else value
        weight = self.q_proj.weight
        dtype = autocast_dtype(weight.dtype, weight.device)
        query, key, value = (
            x.to(dtype) if isinstance(x, Array) and x.dtype == weight.dtype else x for x in (query, key, value)
        )
        checks.layer_call(
            self.config, str(dtype).removeprefix("torch."), query, key, value, mask, Array, RotationSettings(**rotation)
        )
        return query, key, value

    def _projected(self, query: Array, key: Array, value: Array) -> dict[str, Array]:
        """Heads split, and normed where there is a QK-norm."""
        config = self.config
        stages = {
            "q_proj": _split(self.q_proj(query), config.num_heads),
            "k_proj": _split(self.k_proj(key), config.num_kv_heads),
            "v_proj": _split(self.v_proj(value), config.num_kv_heads),
        }
        if config.qk_norm is not None:
            for name, norm in (("q", self.q_norm), ("k", self.k_norm)):
                stages[f"{name}_norm"] = qk_norm(
                    stages[f"{name}_proj"], norm.weight, config.qk_norm, config.qk_norm_eps
                )
        return stages

    def _turned(self, stages: dict[str, Array], query_tables: Tables, key_tables: Tables) -> dict[str, Array]:
        """Queries and keys turned by RoPE's tables of cos and sin."""
        assert self.config.rope is not None
        q, k, _ = _newest(stages)
        pairing = self.config.rope.pairing
        return {"q_rope": rope.turn(q, query_tables, pairing), "k_rope": rope.turn(k, key_tables, pairing)}

    def _count(self, x: Array, cache: KVCache, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of x's tokens each row appends, once everything that is known has been checked."""
        checks.array("x", x, Array)
        checks.instance("cache", cache, KVCache)
        checks.cache_not_consumed(cache.spent)
        checks.extend(self.config, x.shape, cache.keys.shape, cache.values.shape, cache.rolling)
        B, T = x.shape[:2]
        if lengths is None:
            count = torch.full((B,), T, device="cpu")
        else:
            checks.cache_lengths(lengths, Array, B)
            count = lengths.to("cpu", torch.int64).clamp(0, T)
            checks.cache_lengths_in_chunk(cache_.known(lengths) or (), T)
        if not cache.rolling:
            checks.cache_room(cache.capacity, cache_.known(cache.length) or (), cache_.known(count) or ())
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
            "sinks": self.sinks,
            "dropout_multiplier": self._dropout_multiplier(q, k),
        }

    def _dropout_multiplier(self, q: Array, k: Array) -> Array | None:
        p = self.config.dropout
        if not self.training or p == 0:
            return None
        ones = torch.ones(*q.shape[:3], k.shape[2], dtype=compute_dtype(q.dtype), device=q.device)
        return nn.functional.dropout(ones, p)

    def _output(self, context: Float[Array, "B N T Hv"]) -> Float[Array, "B T D"]:
        return self.o_proj(context.transpose(1, 2).flatten(2))


GroupQueryAttention = GroupedQueryAttention


class Weight(nn.Module):
    """The place of one `weight`, so that it has its canonical name; the maths is in gqa_torch.norm."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def _split(x: Float[Array, "B T W"], heads: int) -> Float[Array, "B heads T size"]:
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _newest(stages: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """query, key and value as they are after the last stage so far."""
    last = next(stage for stage in ("rope", "norm", "proj") if f"q_{stage}" in stages)
    return stages[f"q_{last}"], stages[f"k_{last}"], stages["v_proj"]


def tensor(x: Array | np.ndarray) -> Array:
    """A copy as a tensor. NumPy and PyTorch know bfloat16 under different names, so its bits travel as int16."""
    if isinstance(x, Array):
        return x.detach().clone()
    copied = np.array(x, order="C")
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def array(x: Array) -> np.ndarray:
    """A copy as a NumPy array, the other way about."""
    copied = x.detach().cpu().clone()
    if x.dtype == torch.bfloat16:
        return copied.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return copied.numpy()

"""What a layer has to know of a mesh: over which axes its batch, heads and positions are cut. Set by `parallel`.

The kernel runs on each device's part under `jax.shard_map`: left to XLA, the loops of the blocked path would gather
all heads on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Integer

from gqa_jax import attention as kernel
from gqa_jax import cache as cache_
from gqa_jax import decoding
from gqa_jax.cache import KVCache
from gqa_spec import AttentionConfig, checks
from gqa_spec.settings import KernelSettings


@dataclass(frozen=True)
class MeshPart:
    """Names of a mesh's axes: `tensor` cuts heads, `data` rows of the batch, `context` the queries' positions."""

    mesh: Mesh
    tensor: str | None = None
    data: str | None = None
    context: str | None = None

    def cached_heads(self, num_kv_heads: int) -> int:
        """KV heads in a cache: with fewer than devices, each device has a copy of the one that its queries read."""
        return max(num_kv_heads, self._size(self.tensor))

    def attention(
        self,
        query: Float[Array, "B N T H"],
        key: Float[Array, "B K S H"],
        value: Float[Array, "B K S Hv"],
        mask: Array | None,
        settings: KernelSettings,
        *,
        need_weights: bool,
    ) -> tuple[Float[Array, "B N T Hv"], Float[Array, "B N T S"] | None]:
        """`gqa_jax.attention.attention` of each device's heads, rows and queries. Keys and values of all positions are
        gathered where `context` cuts them.
        """
        checks.attention(query, key, value, mask, Array, settings)
        (B, N, T, _), S = query.shape, key.shape[2]
        checks.context_length(T, self._size(self.context))
        arrays, rest = _arrays_of(settings)
        full = (B, N, T, S)
        place = self._spec(B, heads=True, queries=True)
        in_specs = (
            place,
            *(self._keys_spec(key),) * 2,
            None if mask is None else self._broadcast_spec(mask.shape, full),
            {name: self._settings_spec(name, x.shape, full) for name, x in arrays.items()},
        )
        out_specs = (place, place if need_weights else None)
        shared = self._shares(key.shape[1])
        local = partial(self._attention, rest=rest, offset=S - T, shared=shared, need_weights=need_weights)
        return self._mapped(local, in_specs, out_specs)(query, key, value, mask, arrays)

    def extend(
        self,
        query: Float[Array, "B N T H"],
        key: Float[Array, "B K T H"],
        value: Float[Array, "B K T Hv"],
        cache: KVCache,
        count: Integer[Array, "B"],
        settings: KernelSettings,
        config: AttentionConfig,
    ) -> tuple[Float[Array, "B N T Hv"], KVCache]:
        """`extended` of each device's heads and rows; positions are not cut."""
        arrays, rest = _arrays_of(settings)
        (B, N, T, _), rows = query.shape, self._rows(query.shape[0])
        place, held = self._spec(B, heads=True), self._cache_specs(cache)
        in_specs = (
            place,
            *(self._keys_spec(key),) * 2,
            held,
            P(rows),
            {name: self._settings_spec(name, x.shape, (B, N, T, 0)) for name, x in arrays.items()},
        )

        shared = self._shares(key.shape[1])

        def local(q: Array, k: Array, v: Array, cache: KVCache, count: Array, arrays: Any) -> Any:
            k, v = (self._own_head(x) if shared else x for x in (k, v))
            return extended(q, k, v, cache, count, replace(rest, **arrays), config)

        return self._mapped(local, in_specs, (place, held))(query, key, value, cache, count, arrays)

    def init_cache(
        self, config: AttentionConfig, batch_size: int, max_length: int, rolling: bool, dtype: Any, num_kv_heads: int
    ) -> KVCache:
        """`cache.empty`, each device's part allocated on that device."""
        make = partial(cache_.empty, config, batch_size, max_length, rolling, dtype, num_kv_heads=num_kv_heads)
        shapes = jax.eval_shape(make)
        places = jax.tree.map(partial(NamedSharding, self.mesh), self._cache_specs(shapes))
        return jax.tree.map(lambda x, place: jnp.zeros(x.shape, x.dtype, device=place), shapes, places)

    def _attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        arrays: dict[str, Any],
        *,
        rest: KernelSettings,
        offset: int,
        shared: bool,
        need_weights: bool,
    ) -> tuple[Array, Array | None]:
        """On one device. offset: of the whole's first query, unless the settings have one. shared: see `_shares`."""
        settings = replace(rest, **arrays)
        if self.context is not None:
            first = offset if settings.offset is None else settings.offset
            settings = replace(settings, offset=first + lax.axis_index(self.context) * q.shape[2])
        k, v = (self._own_head(x) if shared else x for x in (k, v))
        return kernel.attention(q, k, v, mask, settings, need_weights=need_weights)

    def _shares(self, num_kv_heads: int) -> bool:
        """Whether there are fewer KV heads than devices: keys and values are then whole on each."""
        return num_kv_heads < self._size(self.tensor)

    def _own_head(self, x: Float[Array, "B K S h"]) -> Float[Array, "B 1 S h"]:
        """Of all KV heads, the one that this device's queries read."""
        number = lax.axis_index(self.tensor) * x.shape[1] // self._size(self.tensor)
        return lax.dynamic_slice_in_dim(x, number, 1, axis=1)

    def _mapped(self, local: Any, in_specs: Any, out_specs: Any) -> Any:
        """In jit: outside of one, shard_map would compile each operation of its body by itself."""
        return jax.jit(jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs))

    def _size(self, axis: str | None) -> int:
        return 1 if axis is None else self.mesh.shape[axis]

    def _rows(self, batch_size: int) -> str | None:
        """The axis that cuts the batch; None for one that it does not divide, which is whole on every device."""
        return self.data if batch_size % self._size(self.data) == 0 else None

    def _spec(self, batch_size: int, *, heads: bool, queries: bool = False) -> P:
        return P(self._rows(batch_size), self.tensor if heads else None, self.context if queries else None)

    def _keys_spec(self, key: Float[Array, "B K S H"]) -> P:
        return self._spec(key.shape[0], heads=not self._shares(key.shape[1]))

    def _cache_specs(self, cache: Any) -> Any:
        place = self._spec(cache.keys.shape[0], heads=True)
        row = P(self._rows(cache.keys.shape[0]))
        return replace(cache, keys=place, values=place, length=row, written=None if cache.written is None else row)

    def _broadcast_spec(self, shape: tuple[int, ...], full: tuple[int, int, int, int]) -> P:
        """Of a mask or multiplier: as the weights are cut, but for axes of size 1 that stand for all."""
        names = (*self._spec(full[0], heads=True, queries=True), None)[-len(shape) :]
        return P(*(None if size == 1 else name for name, size in zip(names, shape, strict=True)))

    def _settings_spec(self, name: str, shape: tuple[int, ...], full: tuple[int, int, int, int]) -> P:
        if name == "dropout_multiplier":
            return self._broadcast_spec(shape, full)
        if name == "sinks":
            return P(self.tensor)
        return P(self._rows(full[0])) if shape else P()


def extended(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T Hv"],
    cache: KVCache,
    count: Integer[Array, "B"],
    settings: KernelSettings,
    config: AttentionConfig,
) -> tuple[Float[Array, "B N T Hv"], KVCache]:
    """Append to the cache, then attend to all that it has: what of `extend` is between the projections."""
    mask, offset, chunk = decoding.kernel_arguments(cache, config, query.shape[2])
    new_cache, keys, values = decoding.append(cache, key, value, count)
    settings = replace(settings, offset=offset, chunk=chunk)
    keys, values = keys.astype(query.dtype), values.astype(query.dtype)
    return kernel.attend(query, keys, values, mask, settings, finite_keys=True), new_cache


def _arrays_of(settings: KernelSettings) -> tuple[dict[str, Any], KernelSettings]:
    """Those of the settings that are arrays, and the settings without them."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    arrays: dict[str, Any] = {name: x for name, x in values.items() if isinstance(x, Array)}
    without: dict[str, Any] = dict.fromkeys(arrays)
    return arrays, replace(settings, **without)

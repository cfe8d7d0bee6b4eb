"""gqa_jax as the `attention_fn` of flax's own attention modules, nnx and linen.

```python
from gqa_jax.integrations.flax import attention_fn

layer = nnx.MultiHeadAttention(8, 512, num_kv_heads=2, attention_fn=attention_fn, decode=False, rngs=rngs)
```
"""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from gqa_jax.attention import grouped_query_attention

FULL_PRECISION = (None, "highest", "float32", jax.lax.Precision.HIGHEST)


def attention_fn(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K Hv"],
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = True,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
) -> Float[Array, "*B T N Hv"]:
    """Grouped-query attention with the arguments of flax's `dot_product_attention`.

    Args:
        query, key, value: heads behind positions, any batch axes; K divides N.
        bias: added to the scores, broadcastable to (*B, N, T, S).
        mask: what is not 0 may attend (flax's convention, of any dtype), broadcastable to (*B, N, T, S).
        broadcast_dropout: one dropout pattern (T, S) for the whole batch and all heads.
        dropout_rng, dropout_rate, deterministic: as in flax; the pattern is the one that flax draws from this key.
        dtype: what query, key and value are cast to; their common dtype where None.
        precision: None or the highest: products are computed in full precision.
        module: where attention weights are sown, under flax's name; those before dropout.
        is_causal: key j is visible to query i if j <= i (top-left, as in flax).
        force_fp32_for_softmax: always so for 16-bit inputs.

    Returns:
        context.

    Raises:
        ValueError: for a precision or an einsum that cannot be honoured, and as `grouped_query_attention`.
    """
    _refuse(precision, qk_attn_weights_einsum, attn_weights_value_einsum)
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    batch, (T, N), S = query.shape[:-3], query.shape[-3:-1], key.shape[-3]
    q, k, v = (x.astype(dtype).reshape(-1, *x.shape[-3:]).swapaxes(1, 2) for x in (query, key, value))
    dropout = None
    if dropout_rate > 0 and not deterministic:
        shape = (*(1 for _ in batch), 1, T, S) if broadcast_dropout else (*batch, N, T, S)
        kept = jax.random.bernoulli(_required(dropout_rng), 1 - dropout_rate, shape)
        dropout = _four_axes(kept.astype(dtype) / (1 - dropout_rate), batch)
    context, weights = grouped_query_attention(
        q,
        k,
        v,
        _combined(_four_axes(bias, batch), _four_axes(mask, batch)),
        causal=is_causal,
        offset=0,
        dropout_multiplier=dropout,
        need_weights=module is not None,
    )
    if weights is not None:
        collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
        module.sow(collection, "attention_weights", weights.reshape(*batch, N, T, S))
    return context.swapaxes(1, 2).reshape(*batch, T, N, value.shape[-1])


def _refuse(precision: Any, *einsums: Any) -> None:
    """Raises ValueError for what would change the maths."""
    if precision not in FULL_PRECISION:
        raise ValueError(
            f"precision: expected None or 'highest', got {precision!r}: gqa_jax computes in full precision"
        )
    if any(einsum is not None for einsum in einsums):
        raise ValueError(
            "qk_attn_weights_einsum, attn_weights_value_einsum: gqa_jax has its own products; leave them out"
        )


def _required(dropout_rng: Array | None) -> Array:
    if dropout_rng is None:
        raise ValueError("dropout_rng: expected a key where dropout_rate > 0 and deterministic=False, got None")
    return dropout_rng


def _combined(bias: Array | None, mask: Array | None) -> Array | None:
    """flax's two arguments as one of ours: a mask is truth, a bias is added."""
    if mask is not None:
        mask = mask.astype(bool)
    return mask if bias is None else bias if mask is None else jnp.where(mask, bias, -jnp.inf)


def _four_axes(x: Array | None, batch: tuple[int, ...]) -> Array | None:
    """(*B, n, t, S) -> (b, n, t, S): missing axes added, all batch axes as one, b = 1 where they are all 1."""
    if x is None:
        return None
    x = x.reshape((1,) * (len(batch) + 3 - x.ndim) + x.shape)
    if prod(x.shape[:-3]) > 1:
        x = jnp.broadcast_to(x, (*batch, *x.shape[-3:]))
    return x.reshape(-1, *x.shape[-3:])

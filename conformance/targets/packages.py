"""Packages that are judged where they are installed. Each is imported when it is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray


def x_transformers(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False,
    scale: float | None = None, softcap: float | None = None,
) -> Any:  # fmt: skip
    """x_transformers.attend.Attend: boolean masks, biases by `attn_bias`; the cap is `softclamp_logits`."""
    from x_transformers.attend import Attend

    boolean = mask is not None and mask.dtype.is_floating_point is False
    (B, N, T, _), S = query.shape, key.shape[2]
    attend = Attend(
        heads=N, causal=causal, scale=scale, softclamp_logits=softcap is not None,
        logit_softclamp_value=softcap or 50.0,
    ).eval()  # fmt: skip
    shown = mask.expand(B, N, T, S) if mask is not None and boolean else None
    added = mask.expand(B, N, T, S) if mask is not None and not boolean else None
    context, intermediates = attend(query, key, value, mask=shown, attn_bias=added)
    return context, intermediates.post_softmax_attn


def tinygrad(query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False) -> Array:
    """Tensor.scaled_dot_product_attention."""
    from tinygrad import Tensor as Lazy

    q, k, v = (Lazy(x) for x in (query, key, value))
    shown = None if mask is None else Lazy(np.ascontiguousarray(mask))
    result = q.scaled_dot_product_attention(
        k, v, attn_mask=shown, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
    )
    return np.asarray(result.numpy())


def mlx(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False,
    scale: float | None = None, sinks: Array | None = None,
) -> Array:  # fmt: skip
    """mlx.core.fast.scaled_dot_product_attention: a mask, or the word "causal"."""
    import mlx.core as mx

    from conformance.targets.protocol import Unsupported

    if causal and mask is not None:
        raise Unsupported("a mask or causal")
    q, k, v = (mx.array(x) for x in (query, key, value))
    shown: Any = "causal" if causal else None if mask is None else mx.array(mask)
    result = mx.fast.scaled_dot_product_attention(
        q, k, v, scale=query.shape[-1] ** -0.5 if scale is None else scale, mask=shown,
        sinks=None if sinks is None else mx.array(sinks),
    )  # fmt: skip
    return np.array(result)

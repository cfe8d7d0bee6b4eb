"""The gradient of the kernel, written by hand from its stages. SPEC 5 and 6 hold for it: what is hidden gets none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from gqa_numpy import masks
from gqa_numpy.attention import stages_of
from gqa_numpy.plain import zero_hidden
from gqa_numpy.precision import compute_dtype
from gqa_spec.settings import KernelSettings

Array = np.ndarray
Gradients = dict[str, Array]


def grouped_query_attention_vjp(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    offset: masks.Offset = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout_multiplier: Array | None = None,
) -> tuple[Float[Array, "B N T Hv"], Callable[[Float[Array, "B N T Hv"]], Gradients]]:
    """Compute the context, and a function that gives the gradients.

    Args:
        query, key, value, mask, causal, window, chunk, offset, scale, softcap, sinks, dropout_multiplier: As for
            `grouped_query_attention`.

    Returns:
        The context (B, N, T, Hv), and a function from the gradient of the context to those of the arguments: a dict
        with query, key, value, and, where they were given, mask (a floating one) and sinks; each has the shape and the
        dtype of its argument.

    Raises:
        ValueError: For a wrong shape or setting (SPEC 14).
        TypeError: For a wrong type or dtype.
    """
    settings = KernelSettings(
        causal=causal,
        window=window,
        chunk=chunk,
        offset=offset,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_multiplier=dropout_multiplier,
    )
    return attention_vjp(query, key, value, mask, settings)


def attention_vjp(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    mask: Array | None,
    settings: KernelSettings,
) -> tuple[Float[Array, "B N T Hv"], Callable[[Float[Array, "B N T Hv"]], Gradients]]:
    """`grouped_query_attention_vjp`, its settings in one object."""
    stages = stages_of(query, key, value, mask, settings)
    (B, N, T, H), (_, K, S, Hv), G = query.shape, value.shape, query.shape[1] // key.shape[1]
    dtype, weights, sinks = compute_dtype(query.dtype), stages["weights"], settings.sinks
    visible = masks.visible_keys(T, S, masks.split(mask)[0], settings, settings.offset)
    hidden = (query, key, value) if visible is None else zero_hidden(query, key, value, visible)
    q, k, v = (x.astype(dtype) for x in (hidden[0].reshape(B, K, G, T, H), hidden[1], hidden[2]))
    multiplier = settings.dropout_multiplier
    multiplier = dtype.type(1) if multiplier is None else multiplier.astype(dtype)

    def vjp(d_context: Float[Array, "B N T Hv"]) -> Gradients:
        d_out = d_context.astype(dtype).reshape(B, K, G, T, Hv)
        kept = (weights * multiplier).reshape(B, K, G, T, S)
        d_value = np.einsum("bkgts,bkgtv->bksv", kept, d_out, optimize=True)
        d_weights = np.einsum("bkgtv,bksv->bkgts", d_out, v, optimize=True).reshape(B, N, T, S) * multiplier
        # The softmax. The sink is part of its sum, which is why weights that sum to less than 1 are all that is needed.
        shared = (weights * d_weights).sum(axis=-1, keepdims=True)
        gradients, d_scores = _scores_vjp(weights * (d_weights - shared), stages, mask, settings)
        d_products = (d_scores * dtype.type(settings.scale_for(H))).reshape(B, K, G, T, S)
        gradients["value"] = d_value
        gradients["query"] = np.einsum("bkgts,bksh->bkgth", d_products, k, optimize=True).reshape(B, N, T, H)
        gradients["key"] = np.einsum("bkgts,bkgth->bksh", d_products, q, optimize=True)
        if sinks is not None:
            sees = weights.any(axis=-1, keepdims=True)
            share = np.where(sees, 1 - weights.sum(axis=-1, keepdims=True), dtype.type(0))
            gradients["sinks"] = -(share * shared).sum(axis=(0, 2, 3))
        given: dict[str, Any] = {"query": query, "key": key, "value": value, "mask": mask, "sinks": sinks}
        return {name: gradients[name].astype(x.dtype) for name, x in given.items() if name in gradients}

    return stages["context"], vjp


def _scores_vjp(
    d_masked: Float[Array, "B N T S"], stages: dict[str, Array], mask: Array | None, settings: KernelSettings
) -> tuple[Gradients, Float[Array, "B N T S"]]:
    """From the gradient of the masked scores to those of a floating mask, if there is one, and of the scores."""
    gradients, dtype = {}, d_masked.dtype
    if mask is not None and mask.dtype != bool:
        limit = np.finfo(dtype).min  # a sum clamped to it no longer follows its terms
        d_masked = np.where(stages["masked"] > limit, d_masked, dtype.type(0))
        gradients["mask"] = _summed_to(d_masked, mask.shape)
    if settings.softcap is not None:
        d_masked = d_masked * (1 - np.square(stages["capped"] / dtype.type(settings.softcap)))
    return gradients, d_masked


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array that was broadcast to x's shape."""
    short = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(i for i, (size, full) in enumerate(zip(short, x.shape, strict=True)) if size == 1 and full != 1)
    return x.sum(axis=axes, keepdims=True).reshape(shape)

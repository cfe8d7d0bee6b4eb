"""What a model is called with, and what it generates from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gqa_spec.checks.arrays import array, dtype_name, floating, is_integer_dtype, same_dtype, shape
from gqa_spec.checks.calls import mask, positions
from gqa_spec.checks.values import instance, integer, number


def model_input(config: Any, dtype: str, x: Any, kind: Any) -> None:
    """What a model is called with: tokens, an integer array (B, T), or vectors of its dtype, (B, T, I) with input_dim I
    and else embeddings (B, T, D).
    """
    name = "tokens" if config.input_dim is None else "vectors"
    array(name, x, kind)
    if config.input_dim is not None:
        _vectors(name, x, dtype, "B T I", {"I": config.input_dim})
    elif x.ndim == 3 and not is_integer_dtype(x):
        _vectors("embeddings", x, dtype, "B T D", {"D": config.hidden_size})
    elif not is_integer_dtype(x):
        raise TypeError(f"tokens: expected an integer dtype, got {dtype_name(x)}")
    else:
        shape(name, x.shape, "B T", {})
    if x.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one token, T >= 1, got {tuple(x.shape)}")


def _vectors(name: str, x: Any, dtype: str, symbols: str, sizes: dict[str, int]) -> None:
    floating(name, x)
    same_dtype(name, x, "the model's", dtype)
    shape(name, x.shape, symbols, sizes)


def model_call(config: Any, tokens: Any, mask_: Any, positions_: Any, segments: Any, kind: Any) -> None:
    """mask, positions and segments of a model's call; tokens are (B, T) or (B, T, I)."""
    B, T = tokens.shape[:2]
    if mask_ is not None:
        for heads in sorted({layer.num_heads for layer in config.attention}):
            mask(mask_, kind, (B, heads, T, T))
    if positions_ is not None:
        if not any(layer.uses_positions for layer in config.attention):
            raise ValueError("positions: expected None for a model without rope, whose positions rotate nothing")
        positions("positions", positions_, kind, B, T, "T")
    if segments is not None:
        array("segments", segments, kind)
        if not is_integer_dtype(segments):
            raise TypeError(f"segments: expected an integer dtype, got {dtype_name(segments)}")
        shape("segments", segments.shape, "B T", {"B": B, "T": T})


def token_ids(lowest: int, highest: int, vocab_size: int) -> None:
    if lowest < 0 or highest >= vocab_size:
        got = lowest if lowest < 0 else highest
        raise ValueError(f"tokens: expected 0 <= token < V = {vocab_size}, got {got}")


def model_cache(caches: Any, num_layers: int, kind: Any) -> None:
    """One cache for each layer, as `init_cache` gives them."""
    if not isinstance(caches, tuple) or len(caches) != num_layers:
        got = f"{len(caches)} of them" if isinstance(caches, tuple) else type(caches).__name__
        raise ValueError(f"cache: expected a tuple of one cache for each of {num_layers} layers, got {got}")
    for cache in caches:
        instance("cache", cache, kind)


def seed(value: Any, uniforms_: Any) -> None:
    """A seed draws the uniforms, so that only one of the two is given."""
    if value is not None:
        integer("seed", value, at_least=0)
        if uniforms_ is not None:
            raise ValueError(f"seed: expected None where uniforms are given, got {value}")


def prompts(value: Any, config: Any, max_new_tokens: int, held: Sequence[int] | None = None) -> None:
    """A list of non-empty lists of token ids that leave slots for the new ones in the model's context.

    held: how many tokens each row of a given cache has, None without a cache.
    """
    if config.output != "logits" or config.vocab_size is None:
        raise ValueError(f"generate: expected a model with output='logits', got output={config.output!r}")
    if not isinstance(value, list | tuple) or not value or not all(isinstance(row, list | tuple) for row in value):
        raise TypeError("prompts: expected a list of lists of token ids, at least one")
    if held is not None and len(held) != len(value):
        raise ValueError(f"prompts: expected one for each of the cache's B = {len(held)} rows, got {len(value)}")
    for row, tokens in enumerate(value):
        earlier = 0 if held is None else held[row]
        if not tokens:
            raise ValueError(f"prompts: expected at least one token, got an empty prompt in row {row}")
        for token in tokens:
            integer("token", token, at_least=0)
        token_ids(min(tokens), max(tokens), config.vocab_size)
        if config.max_length is not None and earlier + len(tokens) + max_new_tokens > config.max_length:
            raise ValueError(
                f"prompts: expected length + max_new_tokens <= max_length = {config.max_length}, the model's context, "
                f"got {earlier + len(tokens)} + {max_new_tokens} in row {row}"
            )


def uniforms(value: Any, rows: int, max_new_tokens: int) -> None:
    """Numbers from [0, 1), one for each new token."""
    shape("uniforms", value.shape, "B tokens", {"B": rows, "tokens": max_new_tokens})
    if value.size and not (value.min() >= 0 and value.max() < 1):
        raise ValueError(f"uniforms: expected 0 <= u < 1, got {value.min()} to {value.max()}")


def top_p(value: Any) -> None:
    number("top_p", value, above=0)
    if value > 1:
        raise ValueError(f"top_p: expected a number > 0 and <= 1, got {value}")

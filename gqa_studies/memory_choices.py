"""One's own model with each number of KV heads: the cache, and the batch and context that fit a device. Arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gqa_spec import AttentionConfig, checks
from gqa_studies.memory import GIBIBYTE, KIBIBYTE, cache_bytes, longest_context


@dataclass(frozen=True)
class Choice:
    """A model with `num_kv_heads`. saved: the share of the cache that it saves against K = N. largest_batch: of rows of
    `context` tokens; longest_context: of `batch_size` rows, None where any number of tokens fits.
    """

    variant: str
    num_kv_heads: int
    context: int
    batch_size: int
    kibibytes_per_token: float
    gibibytes: float
    saved: float
    largest_batch: int
    longest_context: int | None


def layers(count: int, num_heads: int, head_dim: int) -> tuple[AttentionConfig, ...]:
    """A model's attention as far as its cache depends on it, with K = N.

    Raises:
        ValueError: For a count below 1.
    """
    checks.integer("layers", count, at_least=1)
    checks.integer("num_heads", num_heads, symbol="N", at_least=1)
    checks.integer("head_dim", head_dim, symbol="H", at_least=1)
    layer = AttentionConfig(
        embed_dim=num_heads * head_dim, num_heads=num_heads, num_kv_heads=num_heads, head_dim=head_dim, causal=True
    )
    return (layer,) * count


def usual_kv_heads(num_heads: int) -> list[int]:
    """N, N / 4, N / 8 and 1, as far as they divide N."""
    return sorted({num_heads // share for share in (1, 4, 8, num_heads) if num_heads % share == 0}, reverse=True)


def choices(
    attention: Sequence[AttentionConfig],
    kv_heads: Sequence[int],
    *,
    context: int,
    batch_size: int = 1,
    element: float = 2,
    memory: float,
) -> list[Choice]:
    """The model with each of `kv_heads` in every layer.

    Args:
        attention: The layers, whose own K does not matter.
        kv_heads: Each must divide N.
        context: Tokens in the cache.
        batch_size: Rows in the cache.
        element: Bytes of a number, fractions too: 0.5 for 4-bit caches.
        memory: Bytes for the cache.

    Raises:
        ValueError: For a K that does not divide N, and for counts below 1.
    """
    checks.integer("context", context, symbol="S", at_least=1)
    full = _bytes(attention, attention[0].num_heads, context, 1, element)
    found = []
    for K in kv_heads:
        with_k = tuple(replace(layer, num_kv_heads=K) for layer in attention)
        row = _bytes(attention, K, context, 1, element)
        found.append(
            Choice(
                variant(attention[0].num_heads, K),
                K,
                context,
                batch_size,
                cache_bytes(with_k, 1, element=element) / KIBIBYTE,
                batch_size * row / GIBIBYTE,
                1 - row / full,
                int(memory // row),
                longest_context(with_k, memory, batch_size=batch_size, element=element),
            )
        )
    return found


def variant(num_heads: int, num_kv_heads: int) -> str:
    return {num_heads: "MHA", 1: "MQA"}.get(num_kv_heads, f"GQA-{num_kv_heads}")


def _bytes(attention: Sequence[AttentionConfig], K: int, length: int, batch_size: int, element: float) -> float:
    with_k = tuple(replace(layer, num_kv_heads=K) for layer in attention)
    return cache_bytes(with_k, length, batch_size=batch_size, element=element)

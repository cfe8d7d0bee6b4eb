"""Grouped-query attention in JAX and Flax NNX."""

from gqa_jax import masks
from gqa_jax.attention import attention_stages, grouped_query_attention, merge
from gqa_jax.cache import KVCache
from gqa_jax.layer import GroupedQueryAttention, GroupQueryAttention
from gqa_jax.model import Transformer

__all__ = [
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "KVCache",
    "Transformer",
    "attention_stages",
    "grouped_query_attention",
    "masks",
    "merge",
]

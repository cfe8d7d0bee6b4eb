"""Grouped-query attention in NumPy: the oracle that the other backends are held against."""

from gqa_numpy import masks
from gqa_numpy.attention import attention_stages, grouped_query_attention, merge
from gqa_numpy.cache import KVCache
from gqa_numpy.gradients import grouped_query_attention_vjp
from gqa_numpy.layer import GroupedQueryAttention, GroupQueryAttention
from gqa_numpy.model import Transformer

__all__ = [
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "KVCache",
    "Transformer",
    "attention_stages",
    "grouped_query_attention",
    "grouped_query_attention_vjp",
    "masks",
    "merge",
]

"""Grouped-query attention in PyTorch: ordinary modules, ordinary tensors."""

from gqa_torch import masks
from gqa_torch.attention import attention_stages, grouped_query_attention, merge
from gqa_torch.cache import KVCache, ModelCache
from gqa_torch.layer import GroupedQueryAttention, GroupQueryAttention
from gqa_torch.model import Transformer

__all__ = [
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "KVCache",
    "ModelCache",
    "Transformer",
    "attention_stages",
    "grouped_query_attention",
    "masks",
    "merge",
]

"""The order of a head's dimensions in the two RoPE pairings (SPEC 10)."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from gqa_spec.config import AttentionConfig
from gqa_spec.rope import Pairing

Array = np.ndarray


def rotary_order(config: AttentionConfig, pairing: Pairing) -> Array:
    """(H,): the place of each dimension of a head of that pairing in a head of the other one."""
    order = np.arange(config.head_dim)
    pattern = "(two pairs) -> (pairs two)" if pairing == "interleaved" else "(pairs two) -> (two pairs)"
    order[: config.rotary_dim] = rearrange(order[: config.rotary_dim], pattern, two=2)
    return order

"""In which dtype a backend computes: 16-bit inputs in float32, float32 and float64 in their own (SPEC 7)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor as Array


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def widened(x: Array) -> Array:
    """x in its compute dtype: itself where it is, since even a cast to the same dtype costs a decoded token time."""
    return x.float() if x.dtype.itemsize == 2 else x


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on there. Some devices, meta among them, have none and raise when asked."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def autocast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a linear layer with weights of `dtype` computes in: autocast's dtype where it is on; it spares float64."""
    if dtype == torch.float64 or not autocasts(device):
        return dtype
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast would round the operands of every product back to 16 bits, and the scores with them."""
    if not autocasts(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

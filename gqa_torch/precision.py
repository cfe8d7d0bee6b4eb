"""The dtype in which the backend computes: 16-bit inputs in float32, float32 and float64 in their own (SPEC 7)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor as Array


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def widened(x: Array) -> Array:
    """x in its compute dtype; not cast where it has it, since even this takes measurable time for one decoded token."""
    return x.float() if x.dtype.itemsize == 2 else x


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for the device.

    Some devices, meta among them, have none, and the query would raise. torch 2.11 cannot compile the first question.
    """
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)
    return available and torch.is_autocast_enabled(device.type)


def autocast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a linear layer with weights of `dtype` computes in: autocast's where it is on, except for float64."""
    if dtype == torch.float64 or not autocasts(device):
        return dtype
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off: it would round the operands of every product to 16 bits, and so the scores."""
    if not autocasts(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

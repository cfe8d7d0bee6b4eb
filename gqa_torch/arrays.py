"""Copies between tensors and NumPy arrays, bfloat16 too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor as Array


def tensor(x: Array | np.ndarray) -> Array:
    """A copy as a tensor. The libraries' bfloat16 types differ, so that its bits are passed on as int16."""
    if isinstance(x, Array):
        return x.detach().clone()
    copied = np.array(x, order="C")
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def array(x: Array) -> np.ndarray:
    """A copy as a NumPy array."""
    copied = x.detach().cpu().clone()
    if x.dtype == torch.bfloat16:
        return copied.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return copied.numpy()

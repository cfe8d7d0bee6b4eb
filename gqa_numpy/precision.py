"""In which dtype a backend computes: 16-bit inputs in float32, float32 and float64 in their own (SPEC 7)."""

from __future__ import annotations

from typing import Any

import numpy as np


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(np.float32) if np.dtype(dtype).itemsize == 2 else np.dtype(dtype)

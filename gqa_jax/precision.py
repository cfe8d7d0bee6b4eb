"""In which dtype a backend computes: 16-bit inputs in float32, float32 and float64 in their own (SPEC 7)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def compute_dtype(dtype: Any) -> jnp.dtype[Any]:
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize == 2 else jnp.dtype(dtype)


def matmul_precision(dtype: Any) -> jax.lax.Precision | None:
    """float32 is float32 on all hardware, where JAX would else take TF32 or bfloat16; 16-bit products are exact."""
    return None if jnp.dtype(dtype).itemsize == 2 else jax.lax.Precision.HIGHEST

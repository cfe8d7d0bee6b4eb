"""NumPy arrays as arguments, settings as pytrees, and values of arrays that are not traced."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType

from gqa_spec import checks
from gqa_spec.settings import KernelSettings, RotationSettings

# jit takes settings whole: what changes the program is static, the rest is traced
STATIC = ("causal", "window", "chunk", "rope_length")
for kind in (KernelSettings, RotationSettings):
    names = [field.name for field in fields(kind)]
    static, traced = ([name for name in names if (name in STATIC) == fixed] for fixed in (True, False))
    jax.tree_util.register_dataclass(kind, data_fields=traced, meta_fields=static)


def as_array(x: Any) -> Any:
    """A NumPy array as an array of JAX, as its own functions take it; all else as it is."""
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def check_sharding(name: str, x: Any) -> None:
    """No axis over which x is sharded is Explicit: the sharding of each result would have to be given."""
    if isinstance(x, Array):
        sharding = jax.typeof(x).sharding
        explicit = {
            n
            for n, kind in zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
            if kind == AxisType.Explicit
        }
        checks.automatic_axes(
            name, tuple(str(axis) for axis in jax.tree.leaves(tuple(sharding.spec)) if axis in explicit)
        )


def known(x: Array) -> np.ndarray | None:
    """The values of x, or None where they cannot be read: while x is traced, or partly on another host."""
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
        return None
    return np.asarray(x)

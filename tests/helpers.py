"""What several test files need: random arrays and weights, comparison bit by bit, layers and models of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.targets import Backend
from gqa_spec import ModelConfig
from gqa_spec.model_config import model_weight_shapes


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Standard normal numbers, the same at every call with the same shape."""
    return np.random.default_rng(list(shape)).normal(size=shape).astype(dtype)


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Standard normal weights: no bias is 0, no norm weight 1."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@dataclass
class Model:
    """A config and its weights, as a checkpoint has them."""

    config: ModelConfig
    weights: dict[str, np.ndarray]


def random_model(config: ModelConfig, dtype: Any = np.float32) -> Model:
    """A model whose weights are small enough for a softmax that does not saturate."""
    weights = random_weights(model_weight_shapes(config))
    return Model(config, {name: (x * 0.3).astype(dtype) for name, x in weights.items()})


def assert_same_bits(got: Mapping[str, Any], expected: Mapping[str, Any], *, in_order: bool = True) -> None:
    """The same names, in the same order unless said otherwise, with the same shapes, dtypes and bits."""
    assert (list(got) == list(expected)) if in_order else (sorted(got) == sorted(expected))
    for name in expected:
        a, b = np.asarray(got[name]), np.asarray(expected[name])
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert a.tobytes() == b.tobytes(), name


def half_rows(count: int, heads: int) -> np.ndarray:
    """Interleaved rows in the order of half ones: pair d of a head is rows 2 d and 2 d + 1."""
    size = count // heads
    return np.array([h * size + 2 * d + part for h in range(heads) for part in (0, 1) for d in range(size // 2)])


def new_layer(backend: Backend, *arguments: Any, dtype: str = "float64", **settings: Any) -> Any:
    """A GroupedQueryAttention of a backend."""
    return backend.module.GroupedQueryAttention(*arguments, **settings, **backend.framework.options(dtype))


def new_model(backend: str, config: ModelConfig, dtype: str = "float64") -> Any:
    """A Transformer in eval mode, whose weights are still to be loaded (in JAX they are shapes only)."""
    if backend == "numpy":
        from gqa_numpy import Transformer

        return Transformer(config, rng=np.random.default_rng(0), dtype=dtype).eval()
    if backend == "torch":
        import torch

        from gqa_torch import Transformer

        return Transformer(config, dtype=getattr(torch, dtype)).eval()
    from flax import nnx

    from gqa_jax import Transformer

    if config.dropout > 0:
        return Transformer(config, rngs=nnx.Rngs(0), param_dtype=dtype).eval()
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), param_dtype=dtype)).eval()


def to_backend(backend: str, x: Any) -> Any:
    """An array of the backend."""
    if backend == "torch":
        import torch

        return torch.as_tensor(x)
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.asarray(x)
    return np.asarray(x)


def to_numpy(x: Any) -> np.ndarray:
    """An array of NumPy, from any backend."""
    return np.asarray(x.detach() if hasattr(x, "detach") else x)

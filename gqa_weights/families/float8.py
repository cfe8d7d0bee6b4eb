"""FP8 weights with scales beside them, read as what they mean: value times scale, in float32.

A weight `x.weight` of a float8 dtype has `x.weight_scale_inv` (DeepSeek's, in blocks) or `x.weight_scale` (one for the
tensor, for each row, or in blocks); both multiply. `x.input_scale` and a cache's scales say how activations may be
rounded, which changes no weight: they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (np.dtype("float8_e4m3fn") knows it from here)
import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families.converted import TensorMapping, WithoutScales

Array = np.ndarray
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
SCALES = ("_scale_inv", "_scale")  # after the name of a weight
OF_ACTIVATIONS = (".input_scale", ".input_activation_scale", ".k_scale", ".v_scale", ".output_scale")
SCALE_DTYPES = ("float32", "bfloat16", "float16")
BLOCK = (128, 128)  # DeepSeek's, where the settings do not say
# quant_method -> the key that says of what kind its weights are, and its values that are read (`mxfp4` is read in a
# module of its own). Others are refused by name.
METHODS: Mapping[str, tuple[str, tuple[str | None, ...]]] = {
    "fp8": ("fmt", ("e4m3", "e5m2", None)),
    "fbgemm_fp8": ("fmt", (None,)),
    "modelopt": ("quant_algo", ("FP8", None)),
    "compressed-tensors": ("format", ("float-quantized", "naive-quantized")),
    "mxfp4": ("fmt", (None,)),
}


def refusal(settings: Any) -> str | None:
    """Why weights of a `quantization_config` cannot be read, or None where they can."""
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str):
        return f"quantization_config {settings!r}"
    if method in METHODS:
        key, values = METHODS[method]
        return None if settings.get(key) in values else f"quantization_config with {key} {settings.get(key)!r}"
    return f"quantization_config with quant_method {method!r}"


class Dequantized(WithoutScales):
    """A checkpoint whose float8 weights are float32; their scales are no tensors of their own."""

    def __init__(self, source: TensorMapping, block: Sequence[int]) -> None:
        self._scales = {name: scale for name in source if (scale := _scale_of(name, source)) is not None}
        of_weights = dict.fromkeys(set(self._scales.values()), "scales FP8 weights")
        of_activations = {name: "scales activations" for name in source if name.endswith(OF_ACTIVATIONS)}
        super().__init__(source, of_weights | of_activations)
        self._block = block

    def info(self, name: str) -> TensorInfo:
        info = self._source.info(name)
        return TensorInfo(info.shape, "float32", info.dtype) if info.dtype in FLOAT8 else info

    def __getitem__(self, name: str) -> Array:
        values = self._source[name]
        if values.dtype.name not in FLOAT8:
            return values
        wide = values.astype(np.float32)
        if name in self._scales:
            stored = self._source.info(self._scales[name]).dtype
            if stored not in SCALE_DTYPES:  # uint8 holds exponents
                raise ValueError(f"tensors: {name} has scales of dtype {stored}, expected {', '.join(SCALE_DTYPES)}")
            wide *= _spread(self._source[self._scales[name]].astype(np.float32), wide.shape, self._block, name)
        return wide


def dequantized(source: TensorMapping, settings: Mapping[str, Any]) -> TensorMapping:
    """The source itself where it has no float8 tensors."""
    if not any(source.info(name).dtype in FLOAT8 for name in source):
        return source
    config = settings.get("quantization_config") or {}
    return Dequantized(source, config.get("weight_block_size") or BLOCK)


def _scale_of(name: str, source: TensorMapping) -> str | None:
    if source.info(name).dtype not in FLOAT8:
        return None
    return next((name + end for end in SCALES if name + end in source), None)


def _spread(scale: Array, shape: tuple[int, ...], block: Sequence[int], name: str) -> Array:
    """The scale of every element, or something that broadcasts to it."""
    if scale.size == 1:
        return scale.reshape(())
    rows = shape[0]
    if scale.size == rows and scale.shape in ((rows,), (rows, 1)):
        return scale.reshape(rows, 1)
    if len(shape) == len(block) and scale.shape == tuple(-(-n // b) for n, b in zip(shape, block, strict=True)):
        spread = scale.repeat(block[0], axis=0)[:rows].repeat(block[1], axis=1)
        return spread[:, : shape[1]]
    raise ValueError(f"tensors: {name} {shape} has scales {scale.shape}, which fit no blocks of {tuple(block)}")

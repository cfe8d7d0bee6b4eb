"""MXFP4 weights, read as what they mean: 4-bit numbers, 32 of which share a power of two (OCP Microscaling 1.0).

gpt-oss stores `x_blocks` (..., groups, 16) of two numbers a byte, the lower half first, and `x_scales` (..., groups),
the exponents plus 127. Every product fits bfloat16 without rounding, as transformers reads them too.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from gqa_weights.checkpoint import TensorInfo
from gqa_weights.families.converted import TensorMapping, WithoutScales

Array = np.ndarray
BLOCKS, SCALES = "_blocks", "_scales"
GROUP_BYTES = 16
DTYPE = "bfloat16"
BIAS = 127
NOT_A_NUMBER = 255  # as an exponent
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)  # byte -> its two numbers


class Unpacked(WithoutScales):
    """A checkpoint whose blocks are bfloat16 numbers, under the name `x_blocks`; scales are no tensors of their own."""

    def __init__(self, source: TensorMapping, packed: frozenset[str]) -> None:
        super().__init__(source, dict.fromkeys((_scales(name) for name in packed), "scales MXFP4 weights"))
        self._packed = packed

    def info(self, name: str) -> TensorInfo:
        info = self._source.info(name)
        if name not in self._packed:
            return info
        *axes, groups, _ = info.shape
        return TensorInfo((*axes, groups * 2 * GROUP_BYTES), DTYPE, "mxfp4")

    def __getitem__(self, name: str) -> Array:
        if name not in self._packed:
            return self._source[name]
        blocks, scales = self._source[name], self._source[_scales(name)]
        whole = np.empty(self.info(name).shape, ml_dtypes.bfloat16)
        parts = ((whole, blocks, scales),) if blocks.ndim < 3 else zip(whole, blocks, scales, strict=True)
        for part, packed, exponents in parts:  # one expert after the other: float32 takes eight times the memory
            part[...] = _numbers(packed, exponents).reshape(part.shape)
        return whole


def unpacked(source: TensorMapping) -> TensorMapping:
    """The source itself where it has no blocks with scales."""
    packed = frozenset(name for name in source if name.endswith(BLOCKS) and _are_blocks(name, source))
    return Unpacked(source, packed) if packed else source


def _are_blocks(name: str, source: TensorMapping) -> bool:
    if _scales(name) not in source:
        return False
    blocks, scales = source.info(name), source.info(_scales(name))
    good = blocks.dtype == scales.dtype == "uint8" and len(blocks.shape) >= 2
    return good and blocks.shape == (*scales.shape, GROUP_BYTES)


def _scales(name: str) -> str:
    return name.removesuffix(BLOCKS) + SCALES


def _numbers(blocks: Array, exponents: Array) -> Array:
    with np.errstate(over="ignore"):
        powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - BIAS)
        powers[exponents == NOT_A_NUMBER] = np.nan
        return PAIRS[blocks].reshape(*blocks.shape[:-1], 2 * GROUP_BYTES) * powers[..., None]

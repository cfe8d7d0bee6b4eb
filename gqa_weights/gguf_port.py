"""What a port into a GGUF decides: the architecture, the type of each tensor, and what is said of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint import CheckpointError, TensorInfo
from gqa_weights.checkpoint.formats.gguf_writer import ARCHITECTURE, BLOCK, QUANTIZED, TYPES
from gqa_weights.families import FAMILIES
from gqa_weights.families.gguf_fields import GgufFamily

Q8_0 = QUANTIZED.lower()  # what --dtype calls it
SUFFIX = ".gguf"
# general.file_type: what most of the tensors are stored in (llama.cpp, include/llama.h: llama_ftype).
FILE_TYPES = {"float32": 0, "float16": 1, QUANTIZED: 7, "bfloat16": 32}
GGUF = {family.origin: family for family in FAMILIES.values() if isinstance(family, GgufFamily)}


def gguf_family(origin: str) -> GgufFamily:
    """The family of GGUF for a model of a Hugging Face family.

    Raises:
        ValueError: Where there is none.
    """
    if origin not in GGUF:
        named = ", ".join(family.name for family in GGUF.values())
        raise ValueError(f"layout: family {origin} has no GGUF architecture here: give one that fits it, of {named}")
    return GGUF[origin]


def stored_as(name: str, info: TensorInfo, dtype: str | None) -> TensorInfo:
    """What a tensor is in the file. Norms and biases are in float32, without which llama.cpp does not compute; rows
    that are no whole blocks are not quantized.

    Raises:
        ValueError: For float64, in which llama.cpp has no weights.
    """
    wanted = dtype or info.dtype
    if wanted not in (*TYPES, Q8_0):
        kinds = ", ".join((*TYPES, Q8_0))
        raise ValueError(f"dtype: a GGUF holds {kinds}, got {wanted} for {name}: choose one of them with --dtype")
    if len(info.shape) == 1:
        return TensorInfo(info.shape, "float32")
    if wanted == Q8_0:
        return TensorInfo(info.shape, "float32", QUANTIZED if info.shape[-1] % BLOCK == 0 else None)
    return TensorInfo(info.shape, wanted)


def file_fields(architecture: str, fields: Mapping[str, Any], infos: Iterable[TensorInfo]) -> dict[str, Any]:
    """All fields: what the file is, then the settings and the tokenizer."""
    kinds = [info.stored or info.dtype for info in infos if len(info.shape) > 1]
    most = max(FILE_TYPES, key=kinds.count)
    version = {"general.quantization_version": 2} if QUANTIZED in kinds else {}
    return {
        ARCHITECTURE: architecture,
        "general.type": "model",
        "general.file_type": FILE_TYPES[most],
        **version,
        **fields,
    }


def notes(infos: Iterable[TensorInfo], dtype: str | None) -> list[str]:
    """What the user should know of the numbers in the file."""
    matrices = [info for info in infos if len(info.shape) > 1]
    packed = sum(info.stored == QUANTIZED for info in matrices)
    said = ["norms and biases are in float32, as llama.cpp needs them"]
    if dtype == Q8_0:
        said.append(
            f"{packed} of {len(matrices)} matrices are rounded to Q8_0, each number by at most 1/226 of the largest of "
            f"its {BLOCK} plus 4e-6; {len(matrices) - packed} have rows of no whole blocks and are in float32"
        )
    return said


def check_dest(layout: str, dest: Path) -> None:
    """Raise CheckpointError where one of layout and destination is a GGUF and the other is not."""
    of_gguf = isinstance(FAMILIES.get(layout), GgufFamily)
    if of_gguf and dest.suffix != SUFFIX:
        raise CheckpointError(f"{dest}: layout {layout}: expected DEST {SUFFIX}, got {dest.suffix or 'a folder'}")
    if not of_gguf and dest.suffix == SUFFIX:
        held = ", ".join(family.name for family in GGUF.values())
        raise CheckpointError(
            f"{dest}: layout {layout}: expected a folder, .safetensors or .npz; {SUFFIX} is for {held}"
        )

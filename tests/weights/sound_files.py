"""Small valid files of each format, for the tests that damage them, and a reader of everything in a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

from gqa_weights.checkpoint import open_checkpoint


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    json.dumps(checkpoint.settings)
    for name in checkpoint:
        array = checkpoint[name]
        info = checkpoint.info(name)
        assert (array.shape, array.dtype.name) == (info.shape, info.dtype)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "blocks.0.q": rng.normal(size=(5, 3)).astype(np.float32),
        "blocks.0.k": rng.normal(size=(7,)).astype(np.float16),
        "head": rng.normal(size=(2, 11)),
    }


def safetensors() -> bytes:
    from safetensors.numpy import save

    return save({**arrays(), "half": np.ones((3, 2), ml_dtypes.bfloat16)}, {"config": '{"heads": 5}'})


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    return buffer.getvalue()


def npz_compressed() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())
    return buffer.getvalue()


def torch() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(x) for name, x in arrays().items()}, buffer)
    return buffer.getvalue()


def gguf() -> bytes:
    import tempfile

    import gguf

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder) / "one.gguf", "llama")
        writer.add_array("general.tags", ["an", "es"])
        writer.add_array("llama.sizes", [3, 5, 7])
        for name, x in arrays().items():
            writer.add_tensor(name, x)
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), kind)
        writer.add_tensor("packed", packed, raw_dtype=kind)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        return (Path(folder) / "one.gguf").read_bytes()


SOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    "safetensors": ("one.safetensors", cache(safetensors)),
    "npz": ("one.npz", cache(npz)),
    "npz_compressed": ("one.npz", cache(npz_compressed)),
    "torch": ("one.pt", cache(torch)),
    "gguf": ("one.gguf", cache(gguf)),
}

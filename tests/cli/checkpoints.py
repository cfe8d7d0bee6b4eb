"""Small checkpoints that transformers wrote, and the command on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from gqa import app

# N = 6, K = 2, G = 3; Meta's files need D = N * H. K * H is a multiple of 2 * N: rows permuted wrongly still fit.
LLAMA: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 72,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
GEMMA3: dict[str, Any] = {
    **LLAMA,
    "hidden_size": 30,
    "num_hidden_layers": 3,
    "head_dim": 10,
    "query_pre_attn_scalar": 13,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
Q_NORM = "model.layers.2.self_attn.q_norm.weight"


def saved(folder: Path, model: Any) -> Path:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: Any) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in load_file(folder / "model.safetensors").items()}


def edited(source: Path, folder: Path, settings: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    """A copy of a folder with some of its settings or tensors replaced."""
    shutil.copytree(source, folder)
    if settings:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    if arrays:
        save_file(tensors(source) | arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(result: Any, dest: Path, *named: Any) -> None:
    """Exit code 2, one sentence that names what is wrong, nothing written."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert all(str(text) in lines[0] for text in named), lines[0]
    assert not dest.exists()
    assert not [path for path in dest.parent.iterdir() if path.name.startswith((".", dest.name))]

"""The families of consolidated files: Meta's and Mistral's own form of small Hugging Face models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_numpy import Transformer
from gqa_spec import ModelConfig
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.families import model_settings, read_config, read_model
from gqa_weights.port import plan, write
from tests.weights.small_models import PROMPTS, saved, stand_in

pytestmark = pytest.mark.no_shape_checks


def consolidated(model: Any) -> dict[str, np.ndarray]:
    """Meta's names, and rows of q and k interleaved by the formula that transformers' converters undo."""
    import torch

    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "gate_proj": "w1", "down_proj": "w2"}
    names |= {"up_proj": "w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"self_attn": "attention", "mlp": "feed_forward", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    config, tensors = model.config, {}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, p in ((name, p.detach()) for name, p in model.named_parameters()):
        if "q_proj" in name or "k_proj" in name:  # (heads, halves, H / 2): pairs side by side
            p = p.view(-1, 2, head_dim // 2, p.shape[1]).transpose(1, 2).reshape(p.shape)
        parts = [names.get(part, part) for part in name.removeprefix("model.").split(".")]
        tensors[".".join(parts)] = torch.as_tensor(p).numpy()
    return tensors


def test_meta_files(folder: Path) -> None:
    model, path = saved("llama plain", folder)
    config = read_model(open_checkpoint(path)).config
    tensors = consolidated(model) | {"rope.freqs": np.zeros(2)}
    params = {"dim": 24, "n_layers": 5, "n_heads": 6, "vocab_size": -1, "norm_eps": 1e-6, "multiple_of": 8}
    read = read_model(stand_in(params, tensors))
    assert read.family == "meta.llama"
    assert read.config == ModelConfig(**{**vars(config), "max_length": None})
    expected = read_model(open_checkpoint(path)).weights
    for name in expected:
        np.testing.assert_array_equal(read.weights[name], expected[name], err_msg=name)
    with pytest.raises(CheckpointError, match=r"use_scaled_rope True of family meta.llama .*8 for Llama 3.1, 32 for"):
        read_model(stand_in(params | {"use_scaled_rope": True}, tensors))
    scaled = read_config(stand_in(params | {"use_scaled_rope": True, "rope_scaling_factor": 8}, tensors))
    assert scaled.attention[0].rope is not None
    assert model_settings("meta.llama", scaled)["rope_scaling_factor"] == 8


def test_mistral_files(folder: Path, tmp_path: Path) -> None:
    """A folder as Mistral's repositories have it, with Hugging Face's config.json beside it."""
    from safetensors.numpy import save_file

    model, path = saved("mistral", folder)
    config, expected = read_model(open_checkpoint(path)).config, read_model(open_checkpoint(path)).weights
    own = tmp_path / "own"
    own.mkdir()
    save_file(consolidated(model), own / "consolidated.safetensors")
    params = {
        "dim": 24,
        "n_layers": 5,
        "head_dim": 10,
        "hidden_dim": 37,
        "n_heads": 6,
        "n_kv_heads": 2,
        "norm_eps": 1e-6,
        "vocab_size": 61,
        "rope_theta": 10000.0,
        "sliding_window": 5,
        "model_type": "transformer",
    }
    (own / "params.json").write_text(json.dumps(params))
    (own / "config.json").write_text((path / "config.json").read_text())
    read = read_model(open_checkpoint(own))
    assert read.family == "mistral.consolidated"
    # params.json has no activation: Mistral's own code has SiLU, whatever this test's model was saved with.
    assert read.config == ModelConfig(**{**vars(config), "max_length": None, "activation": "silu"})
    for name in expected:
        np.testing.assert_array_equal(read.weights[name], expected[name], err_msg=name)
    write(plan(own, "huggingface"), tmp_path / "ported")
    ported = read_model(open_checkpoint(tmp_path / "ported"))
    assert (ported.family, ported.config.attention) == ("mistral", config.attention)
    write(plan(own, "mistral.consolidated"), tmp_path / "back.npz")
    assert set(open_checkpoint(tmp_path / "back.npz")) == set(open_checkpoint(own))
    for refused in ({"moe": {"num_experts": 8}}, {"yarn": {"factor": 16}}, {"use_biases": True}):
        with pytest.raises(CheckpointError, match=next(iter(refused))):
            read_model(stand_in(params | refused, {}))
    logits = Transformer.from_checkpoint(own)(PROMPTS)
    np.testing.assert_array_equal(Transformer.from_checkpoint(tmp_path / "ported")(PROMPTS), logits)

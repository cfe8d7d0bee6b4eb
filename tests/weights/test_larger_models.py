"""Models with vision whose text part is a family of ours: their text alone, against transformers' logits."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.cases.compare import error_of
from gqa_numpy import Transformer
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.families import read_attention, read_model
from gqa_weights.port import plan, write
from tests.weights.small_models import LINEAR, LINEAR_BETWEEN, PROMPTS, SIZES, stand_in

pytestmark = pytest.mark.no_shape_checks

VISION = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 24, "patch_size": 14,
    "num_position_embeddings": 4, "deepstack_visual_indexes": [0], "embed_dim": 16,
}  # fmt: skip
TOKENS = {"image_token_id": 58, "image_token_index": 58, "video_token_id": 59, "vision_start_token_id": 57}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 100.0}

# larger model -> its class, its text part, and what its config is given.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {"model_type": "gemma3_text", "head_dim": 10, "sliding_window": 5, "num_hidden_layers": 7},
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "Mistral3",
        {"model_type": "mistral", "head_dim": 10, "sliding_window": None},
        {"vision_config": {"model_type": "pixtral", **VISION}},
    ),
    "llava": (
        "Llava",
        {"model_type": "llama", "attention_bias": True},
        {"vision_config": {"model_type": "clip_vision_model", **VISION}},
    ),
    "qwen2_vl": (
        "Qwen2VL", {"model_type": "qwen2_vl_text", "rope_parameters": MROPE}, {"vision_config": QWEN_VISION},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL", {"model_type": "qwen2_5_vl_text", "rope_parameters": MROPE}, {"vision_config": QWEN_VISION},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {"model_type": "qwen3_vl_text", "head_dim": 10,
         "rope_parameters": {**MROPE, "mrope_section": [2, 2, 1], "mrope_interleaved": True}},
        {"vision_config": QWEN_VISION},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("larger")


@cache
def larger(case: str, place: Path) -> tuple[Any, Path]:
    import torch
    import transformers

    name, text, other = CASES[case]
    config = getattr(transformers, f"{name}Config")(text_config=SIZES | text, **TOKENS, **other)
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.4)
    model.set_attn_implementation("eager")
    model.eval().save_pretrained(place / case)
    return model, place / case


@pytest.mark.parametrize("case", CASES)
def test_the_text_of_a_larger_model(case: str, place: Path, tmp_path: Path) -> None:
    import torch

    model, path = larger(case, place)
    tokens = PROMPTS % 50  # none of the tokens that stand for images
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert error_of(Transformer.from_checkpoint(path)(tokens), expected) <= 1e-5
    read = read_model(open_checkpoint(path))
    assert read.family == CASES[case][1]["model_type"]
    assert set(read.unread.values()) == {"is not of the text"}
    checkpoint = open_checkpoint(path)
    of_the_text = [name for name in checkpoint if name not in read.unread]
    assert read.config.param_count == sum(checkpoint[name].size for name in of_the_text)
    assert not [name for name in of_the_text if "vis" in name or "proj" in name.split(".")[0]]
    assert read_attention(open_checkpoint(path)).attention == read.config.attention
    write(plan(path, "huggingface"), tmp_path / "text")
    ported = read_model(open_checkpoint(tmp_path / "text"))
    assert ported.config == read.config
    assert all(ported.weights[name].tobytes() == read.weights[name].tobytes() for name in read.weights)
    left_out = json.loads((tmp_path / "text" / "gqa_manifest.json").read_text())["source"]["tensors_left_out"]
    assert "is not of the text" in left_out


def test_the_attention_of_a_larger_model_of_which_no_more_is_read(tmp_path: Path) -> None:
    import torch
    import transformers

    text = SIZES | LINEAR | {"head_dim": 8, "layer_types": LINEAR_BETWEEN}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=QWEN_VISION, **TOKENS)
    torch.manual_seed(3)
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    read = read_attention(open_checkpoint(tmp_path))
    assert (read.family, read.numbers) == ("qwen3_5_text", (1, 2, 4))
    attention = model.model.language_model.layers[2].self_attn
    fused = attention.q_proj.weight.detach().numpy().reshape(6, 16, 24)  # of each head 8 rows of queries, 8 of gates
    np.testing.assert_array_equal(read.weights["blocks.1.attention.gate_proj.weight"].reshape(6, 8, 24), fused[:, 8:])


def test_a_flat_config_of_before_transformers_5(place: Path) -> None:
    """Qwen2-VL's settings beside those of its vision, and its names without `language_model.`."""
    checkpoint = open_checkpoint(larger("qwen2_vl", place)[1])
    nested = checkpoint.settings["text_config"]
    flat = {
        **{key: value for key, value in nested.items() if key not in ("rope_parameters", "layer_types")},
        "model_type": "qwen2_vl", "vision_config": QWEN_VISION, "vision_start_token_id": 57, "image_token_id": 58,
        "rope_theta": 100.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
    }  # fmt: skip
    names = {name: name.replace("language_model.", "").replace("model.visual", "visual") for name in checkpoint}
    old = stand_in(flat, {names[name]: checkpoint[name] for name in checkpoint})
    got, expected = read_model(old), read_model(checkpoint)
    assert got.config == expected.config
    assert all(got.weights[name].tobytes() == expected.weights[name].tobytes() for name in expected.weights)


def test_sizes_that_text_config_leaves_out_are_transformers_own() -> None:
    """Gemma 3 4B's text_config says 5 settings of it."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    from gqa_weights.families import read_config

    config = read_config(stand_in({"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    assert config.param_count == 3_880_263_168  # the text part of google/gemma-3-4b
    assert (config.attention[0].num_heads, config.attention[0].num_kv_heads) == (8, 4)


def test_an_unexpected_tensor_of_the_text_is_refused(place: Path) -> None:
    checkpoint = open_checkpoint(larger("gemma3", place)[1])
    tensors = {name: checkpoint[name] for name in checkpoint}
    extra = {"language_model.model.layers.1.self_attn.sinks": np.zeros(6)}
    with pytest.raises(CheckpointError, match=r"unexpected language_model.model.layers.1.self_attn.sinks$"):
        read_model(stand_in(dict(checkpoint.settings), tensors | extra))
    with pytest.raises(CheckpointError, match="text_config: expected a dictionary"):
        read_model(stand_in({"model_type": "gemma3", "text_config": 3}))

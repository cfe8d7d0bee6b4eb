"""FP8 weights with their scales, read as what they mean: against a scalar loop and against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gqa_numpy import Transformer
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint
from gqa_weights.families import read_attention, read_model
from gqa_weights.families.float8 import dequantized
from tests.weights.small_models import PROMPTS, SIZES, saved, stand_in
from tests.weights.test_file_variants import opened, written

pytestmark = pytest.mark.no_shape_checks

FORMATS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
BLOCK = (16, 10)  # neither divides the sizes


def rounded(name: str, x: np.ndarray, kind: str, form: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A weight in FP8 with its scales, and what they mean, element by element."""
    shape = {
        "tensor": (),
        "row": (x.shape[0], 1),
        "block": tuple(-(-n // b) for n, b in zip(x.shape, BLOCK, strict=True)),
    }
    scale = np.random.default_rng(len(name)).uniform(0.5, 2, shape[form]).astype(np.float32)
    stored = x.astype(FORMATS[kind])
    meant = np.empty(x.shape, np.float32)
    for i, j in np.ndindex(*x.shape):
        place = {"tensor": (), "row": (i, 0), "block": (i // BLOCK[0], j // BLOCK[1])}[form]
        meant[i, j] = np.float32(stored[i, j]) * scale[place]
    end = "_scale_inv" if form == "block" else "_scale"
    return {name: stored, name + end: scale}, meant


QUANTIZED = {
    "tensor": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "row": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {}}},
    "block": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("form", QUANTIZED)
def test_weights_times_their_scales(form: str, kind: str, folder: Path, tmp_path: Path) -> None:
    settings, tensors = opened("llama", folder)
    stored, meant = dict(tensors), dict(tensors)
    for name, x in tensors.items():
        if name.endswith("proj.weight"):
            pieces, meant[name] = rounded(name, x, kind, form)
            stored |= pieces
    stored["model.layers.0.self_attn.q_proj.input_scale"] = np.ones((), np.float32)
    config = QUANTIZED[form] | ({"fmt": kind} if form == "block" else {})
    path = written(tmp_path / "fp8", settings | {"quantization_config": config}, stored)
    read, expected = read_model(open_checkpoint(path)), read_model(stand_in(settings, meant))
    assert read.config == expected.config
    for name in expected.weights:
        assert read.weights[name].tobytes() == expected.weights[name].tobytes(), name
    name = "blocks.0.attention.q_proj.weight"
    assert read.weights.info(name) == TensorInfo(expected.weights[name].shape, "float32")
    assert set(read.unread.values()) == {"scales FP8 weights", "scales activations"}
    layers = read_attention(open_checkpoint(path))
    assert layers.weights[name].tobytes() == expected.weights[name].tobytes()
    assert np.isfinite(Transformer.from_checkpoint(path)(PROMPTS)).all()


def test_transformers_means_the_same(folder: Path, tmp_path: Path) -> None:
    """Its own dequantization of the blocks of `fp8`."""
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    x = np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32)
    scale = np.random.default_rng(1).uniform(0.5, 2, (2, 3)).astype(np.float32)
    weight = torch.from_numpy(x).to(torch.float8_e4m3fn)
    quantizer: Any = None  # which the maths does not need
    meant = Fp8Dequantize(quantizer)._dequantize_one(weight, torch.from_numpy(scale)).numpy()
    stored = stand_in({}, {"weight": weight.view(torch.uint8).numpy().view(FORMATS["e4m3"]), "weight_scale_inv": scale})
    np.testing.assert_array_equal(dequantized(stored, {})["weight"], meant)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantization_config with quant_method 'gptq' of family llama is not"),
        (
            {"quant_method": "awq"},
            "quantization_config with quant_method 'awq' of family llama is not supported, only FP8",
        ),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "format 'pack-quantized' of family"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "with quant_algo 'NVFP4' of family llama"),
    ],
)
def test_other_quantizations_are_refused_by_name(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_model(stand_in(SIZES | {"model_type": "llama", "quantization_config": config}))


def test_scales_that_fit_no_blocks_are_refused(folder: Path) -> None:
    settings, tensors = opened("llama", folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    odd = {name: tensors[name].astype(FORMATS["e4m3"]), f"{name}_scale_inv": np.ones((3, 3), np.float32)}
    model = read_model(stand_in(settings, tensors | odd))
    with pytest.raises(
        ValueError, match=r"q_proj.weight \(60, 24\) has scales \(3, 3\), which fit no blocks of \(128, 128\)"
    ):
        model.weights["blocks.0.attention.q_proj.weight"]


def test_a_folder_of_settings_alone(folder: Path, tmp_path: Path) -> None:
    """What needs no weights works: the settings, and what `gqa inspect` says of the layers."""
    from gqa_weights.describe import describe
    from gqa_weights.families import read_config

    path = saved("gemma3", folder)[1]
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    alone = open_checkpoint(tmp_path)
    assert read_config(alone) == read_config(open_checkpoint(path))
    assert read_attention(alone).attention == read_attention(open_checkpoint(path)).attention
    with pytest.raises(CheckpointError, match=r"the folder has config\.json and no tensors"):
        read_model(alone)
    described, whole = describe(tmp_path), describe(path)
    same = ("family", "layers", "query_heads", "kv_heads", "head_size", "rope", "window")
    assert {key: described[key] for key in same} == {key: whole[key] for key in same}

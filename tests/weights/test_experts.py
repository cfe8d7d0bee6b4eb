"""Experts: a tensor for each of their maps, one for all of them, or blocks of MXFP4, all read as the same model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conformance.cases.compare import error_of
from gqa_numpy import Transformer
from gqa_spec import AttentionConfig, ExpertsConfig, ModelConfig, RopeConfig
from gqa_spec.model_config import model_weight_shapes
from gqa_weights import port
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.describe import describe
from gqa_weights.families import foreign_weights, model_settings, read_model
from gqa_weights.families.expert_tensors import Stack
from tests.weights.small_models import PROMPTS, SINGLE, recorded, saved, stand_in

pytestmark = pytest.mark.no_shape_checks
KEPT_BY_NAME = ("mixtral", "qwen2_moe", "qwen3_moe with dense layers", "olmoe", "granitemoe", "granitemoeshared")


@pytest.mark.parametrize("case", KEPT_BY_NAME)
def test_files_with_one_tensor_for_all_experts_are_the_same_model(case: str, folder: Path) -> None:
    """As transformers 5 writes them where it is told not to split."""
    model, path = saved(case, folder)
    fused = folder / f"{case} fused".replace(" ", "_")
    model.save_pretrained(fused, save_original_format=False)
    mine, other = (read_model(open_checkpoint(place)) for place in (path, fused))
    assert set(open_checkpoint(fused)) != set(open_checkpoint(path))
    assert mine.config == other.config
    for name in mine.weights:
        assert (mine.weights[name] == other.weights[name]).all(), name
        assert other.weights[name].flags.c_contiguous


def test_each_weight_is_that_of_its_expert(folder: Path) -> None:
    """Experts have equal shapes: their names are spelled out, and their rows."""
    model, path = saved("gpt_oss", folder)
    weights, experts = read_model(open_checkpoint(path)).weights, model.model.layers[3].mlp.experts
    gate_up = experts.gate_up_proj.detach().numpy()
    biases = experts.gate_up_proj_bias.detach().numpy()
    for number in range(3):
        ours = f"blocks.3.feed_forward.experts.{number}."
        np.testing.assert_array_equal(weights[f"{ours}gate.weight"], gate_up[number, :, 0::2].T)
        np.testing.assert_array_equal(weights[f"{ours}up.weight"], gate_up[number, :, 1::2].T)
        np.testing.assert_array_equal(weights[f"{ours}up.bias"], biases[number, 1::2])
        assert weights[f"{ours}up.weight"].flags.c_contiguous
        np.testing.assert_array_equal(weights[f"{ours}down.weight"], experts.down_proj.detach().numpy()[number].T)
    model, path = saved("mixtral", folder)
    checkpoint, weights = open_checkpoint(path), read_model(open_checkpoint(path)).weights
    for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        np.testing.assert_array_equal(
            weights[f"blocks.1.feed_forward.experts.4.{ours}.weight"],
            checkpoint[f"model.layers.1.block_sparse_moe.experts.4.{theirs}.weight"],
        )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_stack_splits_and_joins(interleaved: bool, transposed: bool) -> None:
    stack = Stack(maps=("gate", "up"), interleaved=interleaved, transposed=transposed)
    config = ExpertsConfig(num_experts=3, num_experts_per_token=1, expert_size=5)
    array = np.arange(3 * 10 * 7).reshape(stack.shape(config, 7))
    assert array.shape == ((3, 7, 10) if transposed else (3, 10, 7))
    pieces = stack.split(array)
    rows = array.swapaxes(1, 2) if transposed else array
    np.testing.assert_array_equal(pieces["2.up.weight"], rows[2, 1::2] if interleaved else rows[2, 5:])
    np.testing.assert_array_equal(stack.join(pieces), array)


# --- MXFP4 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A gpt-oss whose experts are blocks of random bytes, as its files have them, and transformers' own reading."""
    import torch
    import transformers
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = transformers.GptOssConfig(
        vocab_size=61, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=10, num_local_experts=3, num_experts_per_tok=2, sliding_window=5,
        max_position_embeddings=64, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    config._experts_implementation = "eager"
    model = transformers.GptOssForCausalLM(config).eval()
    folder, rng = tmp_path_factory.mktemp("packed"), np.random.default_rng(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    tensors = {}
    for number, layer in enumerate(model.model.layers):
        for name, rows, columns in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
            blocks = rng.integers(0, 256, (3, rows, columns // 32, 16), dtype=np.uint8)
            scales = rng.integers(118, 126, (3, rows, columns // 32), dtype=np.uint8)
            theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
            getattr(layer.mlp.experts, name).data = theirs.float()
            place = f"model.layers.{number}.mlp.experts.{name}"
            tensors |= {f"{place}_blocks": blocks, f"{place}_scales": scales}
    model.save_pretrained(folder)
    plain = open_checkpoint(folder)
    dropped = {name.removesuffix("_blocks") for name in tensors}
    tensors |= {name: plain[name] for name in plain if name not in dropped}
    settings = {**plain.settings, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["x"]}}
    infos = {name: TensorInfo(x.shape, x.dtype.name) for name, x in tensors.items()}
    save_checkpoint(
        folder / "mxfp4", [(name, infos[name], partial(tensors.get, name)) for name in tensors], settings=settings
    )
    return model, folder / "mxfp4"


def test_blocks_are_read_as_what_they_mean(packed: tuple[Any, Path]) -> None:
    import torch

    model, path = packed
    assert open_checkpoint(path).info("model.layers.0.mlp.experts.down_proj_blocks").dtype == "uint8"
    read = read_model(open_checkpoint(path))
    assert read.unread["model.layers.1.mlp.experts.down_proj_scales"] == "scales MXFP4 weights"
    assert read.weights.info("blocks.0.feed_forward.experts.2.up.weight").dtype == "bfloat16"
    theirs = model.model.layers[1].mlp.experts.gate_up_proj.numpy(force=True)
    for number in range(3):
        gate = read.weights[f"blocks.1.feed_forward.experts.{number}.gate.weight"]
        np.testing.assert_array_equal(gate.astype(np.float32), theirs[number, :, 0::2].T)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(PROMPTS)).logits.numpy()
    assert error_of(Transformer.from_checkpoint(path, dtype=np.float64)(PROMPTS), expected) <= SINGLE


def test_blocks_are_described_as_the_numbers_they_hold(packed: tuple[Any, Path], folder: Path) -> None:
    model, path = packed
    facts = describe(path)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["dtype"].endswith("mxfp4 (4)")
    assert facts["experts"] == "3, 2 for each token, of width 32"
    facts = describe(saved("qwen2_moe normalised", folder)[1])
    assert facts["experts"] == "3, 2 for each token, of width 8, a shared one of width 11, none in 3 layers"
    assert describe(saved("glm4_moe", folder)[1])["experts"] == "not read"
    assert describe(saved("llama", folder)[1])["experts"] == "none"


def test_a_number_of_blocks_by_hand() -> None:
    """The lower half of a byte comes first; the exponent is the scale less 127; 255 is no number."""
    from gqa_weights.families.mxfp4 import unpacked

    blocks = np.zeros((1, 3, 1, 16), np.uint8)
    blocks[0, 0, 0, :3] = 0x21, 0xF7, 0x0C  # 0.5 and 1; 6 and -6; -2 and 0
    blocks[0, 1, 0, 0] = 0x07
    scales = np.array([[[128], [0], [255]]], np.uint8)
    source = unpacked(stand_in({}, {"a_blocks": blocks, "a_scales": scales, "b_blocks": np.zeros((2, 16), np.uint8)}))
    assert list(source) == ["a_blocks", "b_blocks"]
    assert source["b_blocks"].dtype == np.uint8, "without scales it is what it is"
    numbers = source["a_blocks"]
    assert numbers.shape == source.info("a_blocks").shape == (1, 3, 32)
    assert numbers.dtype == ml_dtypes.bfloat16
    assert numbers[0, 0, :7].astype(float).tolist() == [1, 2, 12, -12, -4, 0, 0]
    assert float(numbers[0, 1, 0]) == 6 * 2.0**-127
    assert np.isnan(numbers[0, 2].astype(float)).all()


def test_a_port_of_blocks_is_written_as_numbers(packed: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = packed
    port.write(port.plan(path, "huggingface"), tmp_path / "written")
    settings = json.loads((tmp_path / "written" / "config.json").read_text())
    assert "quantization_config" not in settings
    written, read = (read_model(open_checkpoint(place)) for place in (tmp_path / "written", path))
    assert written.config == read.config
    assert "model.layers.0.mlp.experts.gate_up_proj" in open_checkpoint(tmp_path / "written")
    assert all((written.weights[name] == read.weights[name]).all() for name in read.weights)


# --- what cannot be written, and what does not fit -------------------------------------------------------------------


def mixture(**settings: Any) -> ModelConfig:
    layer = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, causal=True, rope=RopeConfig())
    experts = ExpertsConfig(**{"num_experts": 3, "num_experts_per_token": 2, "expert_size": 5} | settings)
    return ModelConfig(
        attention=(layer, layer), feed_forward_size=5, vocab_size=11, max_length=64, experts=experts, norm_eps=1e-5
    )


@pytest.mark.parametrize(
    ("family", "settings", "sentence"),
    [
        ("llama", {}, r"family llama has no place for feed_forward\.router, feed_forward\.experts\.\{\}\.gate"),
        ("mixtral", {"normalise": False}, r"family mixtral has no settings for experts ExpertsConfig\(.*normalise=Fal"),
        ("mixtral", {"shared_size": 4}, r"family mixtral has no place for feed_forward\.shared\.gate"),
        ("olmoe", {"dense_layers": (1,)}, r"family olmoe has no place for feed_forward\.gate"),
        ("granitemoe", {"bias": True}, r"no place for blocks\.0\.feed_forward\.experts\.0\.gate\.bias"),
        ("gpt_oss", {"bias": False, "normalise": False}, r"family gpt_oss has no settings for .*experts"),
    ],
)
def test_what_a_family_cannot_express_is_refused(family: str, settings: dict[str, Any], sentence: str) -> None:
    config = mixture(**settings)
    with pytest.raises(ValueError, match=sentence):
        model_settings(family, config)


def test_experts_are_ported_there_and_back(folder: Path, tmp_path: Path) -> None:
    """Through canonical names, one tensor at a time."""
    for case in ("mixtral", "qwen2_moe", "gpt_oss"):
        _, path = saved(case, folder)
        place = tmp_path / case
        place.mkdir()
        port.write(port.plan(path, "canonical"), place / "ours")
        port.write(port.plan(place / "ours", "huggingface"), place / "back")
        there, back = open_checkpoint(path), open_checkpoint(place / "back")
        assert set(there) == set(back)
        assert all(there[name].tobytes() == back[name].tobytes() for name in there)


def test_missing_and_misshapen_experts_are_named(folder: Path) -> None:
    checkpoint = open_checkpoint(saved("mixtral", folder)[1])
    tensors = {name: checkpoint[name] for name in checkpoint}
    name = "model.layers.2.block_sparse_moe.experts.1.w2.weight"
    del tensors[name]
    with pytest.raises(CheckpointError, match=f"missing {name}$"):
        read_model(stand_in(dict(checkpoint.settings), tensors))
    settings = {**checkpoint.settings, "num_local_experts": 4}
    with pytest.raises(CheckpointError, match=r"unexpected model\.layers\.0\.block_sparse_moe\.experts\.4\.w1"):
        read_model(stand_in(settings, tensors))


def test_the_config_survives_json() -> None:
    config = mixture(dense_layers=(1,), swiglu_limit=7.0, swiglu_alpha=1.7, shared_size=9, shared_gate=True)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    shapes = model_weight_shapes(config)
    assert shapes["blocks.0.feed_forward.experts.2.down.weight"] == (24, 5)
    assert shapes["blocks.0.feed_forward.shared.up.weight"] == (9, 24)
    assert shapes["blocks.0.feed_forward.shared_gate.weight"] == (1, 24)
    assert "blocks.1.feed_forward.router.weight" not in shapes
    assert config.param_count == sum(int(np.prod(shape)) for shape in shapes.values())
    old = config.replace(experts=None).to_dict()
    del old["experts"]
    assert ModelConfig.from_dict(old).experts is None


def test_weights_of_all_experts_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    checkpoint = open_checkpoint(saved("gpt_oss", folder)[1])
    read_one = type(checkpoint).__getitem__
    monkeypatch.setattr(type(checkpoint), "__getitem__", lambda self, name: reads.append(name) or read_one(self, name))
    model = read_model(checkpoint)
    back = foreign_weights("gpt_oss", model.config, model.weights)
    for name in model.weights:
        assert model.weights[name].size
    assert sorted(reads) == sorted(checkpoint)
    reads.clear()
    assert all(back[name].size for name in back)
    assert sorted(reads) == sorted(checkpoint)


def test_recorded_logits_depend_on_every_part(folder: Path) -> None:
    """Without one expert, or with two of them exchanged, the logits are others: no test above passes by chance."""
    case = "mixtral"
    model = Transformer.from_checkpoint(saved(case, folder)[1], dtype=np.float64)
    weights = model.export_weights()
    a, b = (f"blocks.2.feed_forward.experts.{number}." for number in (0, 1))
    swapped = {name.replace(a, "#").replace(b, a).replace("#", b): x for name, x in weights.items()}
    model.load_weights(swapped)
    assert error_of(model(PROMPTS), recorded(case, folder).logits) > 1e3 * SINGLE

"""Families: every tensor of small random models is read once, and every layer gives transformers' own output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conformance.cases.compare import error_of
from conformance.cases.inputs import Call
from conformance.targets import Backend
from gqa_numpy import Transformer
from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.model_config import model_weight_shapes
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint
from gqa_weights.describe import describe
from gqa_weights.families import (
    foreign_tensors,
    foreign_weights,
    model_settings,
    read_attention,
    read_model,
)
from tests.weights.small_models import CASES, HUGGINGFACE, PROMPTS, SINGLE, WHOLE, recorded, saved, stand_in

pytestmark = pytest.mark.no_shape_checks


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} == set(HUGGINGFACE)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_every_parameter_is_read_once(whole_model: tuple[Any, Path]) -> None:
    """Each canonical weight holds numbers of a tensor of the model, and together they hold all of them, once each."""
    model, path = whole_model
    read = read_model(open_checkpoint(path))
    parameters = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert read.config.param_count == sum(p.size for p in parameters.values())
    assert list(read.weights) == list(model_weight_shapes(read.config))
    theirs = np.sort(np.concatenate([p.ravel() for p in parameters.values()]))
    mine = np.sort(np.concatenate([read.weights[name].ravel() for name in read.weights]))
    np.testing.assert_array_equal(mine, theirs)
    for name in read.weights:
        assert read.weights[name].shape == read.weights.info(name).shape == model_weight_shapes(read.config)[name]
        assert read.weights.info(name).dtype == read.weights[name].dtype.name == "float32"


def test_canonical_weights_become_the_same_files(whole_model: tuple[Any, Path]) -> None:
    _, path = whole_model
    checkpoint = open_checkpoint(path)
    read = read_model(checkpoint)
    back = foreign_weights(read.family, read.config, read.weights)
    assert set(back) == set(checkpoint)
    for name in back:
        assert back[name].tobytes() == checkpoint[name].tobytes()
        assert back.info(name) == TensorInfo(checkpoint[name].shape, "float32")
        assert {read.weights.origin(ours) for ours in back.origins(name)} == {name}


def test_nothing_is_read_before_its_access(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    checkpoint = open_checkpoint(saved("phi3", folder)[1])
    read_one = type(checkpoint).__getitem__
    monkeypatch.setattr(type(checkpoint), "__getitem__", lambda self, name: reads.append(name) or read_one(self, name))
    model = read_model(checkpoint)
    assert reads == []
    for name in model.weights:
        assert model.weights[name].size
    assert sorted(reads) == sorted(checkpoint), "each tensor once, the fused ones too"
    first, again = model.weights["blocks.1.feed_forward.up.weight"], model.weights["blocks.1.feed_forward.up.weight"]
    np.testing.assert_array_equal(first, again)
    assert first is not again


def test_parts_in_their_places(folder: Path) -> None:
    """Where two tensors have one shape, the sum over all cannot tell them apart: these names are spelled out."""
    places = {
        "olmo2": {
            "blocks.1.attention_post_norm.weight": "model.layers.1.post_attention_layernorm.weight",
            "blocks.1.feed_forward_post_norm.weight": "model.layers.1.post_feedforward_layernorm.weight",
        },
        "gemma2": {
            "blocks.2.attention_norm.weight": "model.layers.2.input_layernorm.weight",
            "blocks.2.attention_post_norm.weight": "model.layers.2.post_attention_layernorm.weight",
            "blocks.2.feed_forward_norm.weight": "model.layers.2.pre_feedforward_layernorm.weight",
            "blocks.2.feed_forward_post_norm.weight": "model.layers.2.post_feedforward_layernorm.weight",
            "norm.weight": "model.norm.weight",
        },
        "llama": {
            "blocks.0.attention_norm.weight": "model.layers.0.input_layernorm.weight",
            "blocks.0.feed_forward_norm.weight": "model.layers.0.post_attention_layernorm.weight",
            "blocks.4.feed_forward.gate.weight": "model.layers.4.mlp.gate_proj.weight",
            "blocks.4.feed_forward.up.bias": "model.layers.4.mlp.up_proj.bias",
            "embed.weight": "model.embed_tokens.weight",
            "head.weight": "lm_head.weight",
        },
        "starcoder2": {"blocks.0.feed_forward.up.bias": "model.layers.0.mlp.c_fc.bias", "norm.bias": "model.norm.bias"},
    }
    for case, names in places.items():
        model, path = saved(case, folder)
        weights, parameters = read_model(open_checkpoint(path)).weights, dict(model.named_parameters())
        for ours, theirs in names.items():
            np.testing.assert_array_equal(weights[ours], parameters[theirs].detach().numpy(), err_msg=f"{case} {ours}")
    model, path = saved("phi3", folder)
    weights, mlp = read_model(open_checkpoint(path)).weights, model.model.layers[3].mlp
    gate, up = mlp.gate_up_proj.weight.detach().numpy().reshape(2, 37, 60)  # the first half is activated
    np.testing.assert_array_equal(weights["blocks.3.feed_forward.gate.weight"], gate)
    np.testing.assert_array_equal(weights["blocks.3.feed_forward.up.weight"], up)


def test_tensors_that_do_not_fit_are_all_named(folder: Path) -> None:
    _, path = saved("llama", folder)
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint[name] for name in checkpoint}
    settings = dict(checkpoint.settings)
    extra = {"score.weight": np.zeros((2, 24)), "model.layers.1.self_attn.rotary_emb.inv_freq": np.zeros(5)}
    bent = {"model.norm.weight": np.zeros(23)}
    left = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    sentence = (
        r"^here: tensors: missing lm_head.weight; unexpected score.weight; "
        r"model.norm.weight expected \(24,\), got \(23,\)$"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read_model(stand_in(settings, left | extra | bent))
    with pytest.raises(CheckpointError, match=r"^here: tensors: missing (\S+, ){3}\S+ and 70 more$"):
        read_model(stand_in(settings, dict(list(tensors.items())[:9])))
    with pytest.raises(CheckpointError, match=r"^here: tensors: expected 5 layers, got 2 tensors in all$"):
        read_model(stand_in(settings, extra))
    assert len(
        read_model(stand_in(settings, tensors | {"model.layers.1.self_attn.rotary_emb.inv_freq": np.zeros(5)})).weights
    )


def test_weights_keep_their_dtypes() -> None:
    layer = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, causal=True, rope=RopeConfig())
    config = ModelConfig(attention=(layer,), feed_forward_size=7, vocab_size=11, max_length=64)
    shapes, rng = model_weight_shapes(config), np.random.default_rng(0)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        weights = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        for family in ("llama", "phi3", "meta.llama"):
            there = foreign_weights(family, config, stand_in({}, weights))
            back = read_back(family, config, {name: there[name] for name in there})
            assert {there.info(name).dtype for name in there} == {np.dtype(dtype).name}
            assert all(back[name].tobytes() == weights[name].tobytes() for name in weights)
            assert all(back[name].dtype == dtype for name in weights)


def read_back(family: str, config: ModelConfig, tensors: dict[str, Any]) -> Any:
    model = read_model(stand_in(model_settings(family, config), tensors))
    assert model.family == family
    assert model.config == config
    return model.weights


def test_a_canonical_folder_is_read_by_its_manifest(folder: Path) -> None:
    for case in ("gemma3", "starcoder2", "llama plain"):
        read = read_model(open_checkpoint(saved(case, folder)[1]))
        settings = json.loads(json.dumps(model_settings("canonical", read.config)))
        checkpoint = stand_in({}, {name: read.weights[name] for name in read.weights})
        checkpoint.manifest = {"config": settings}
        again = read_model(checkpoint)
        assert again.family == "canonical"
        assert again.config == read.config
        assert {group.name for group in foreign_tensors("canonical", read.config)} == set(read.weights)


# --- attention, layer by layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_each_layer_gives_transformers_own_output(case: str, folder: Path) -> None:
    """In float64 in both, so that a wrong eps or scale shows; transformers' softmax and RoPE tables are float32."""
    read = read_attention(open_checkpoint(saved(case, folder)[1]))
    layers = recorded(case, folder).layers
    kinds = saved(case, folder)[0].config.to_dict().get("layer_types") or []
    count = CASES[case][1].get("num_hidden_layers", 5) - kinds.count("linear_attention")
    assert len(layers) == len(read.attention) == len(read.numbers) == count
    for number, (config, (hidden, expected)) in enumerate(zip(read.attention, layers, strict=True)):
        prefix = f"blocks.{number}.attention."
        weights = {name.removeprefix(prefix): read.weights[name] for name in read.weights if name.startswith(prefix)}
        layer = Backend("numpy").layer(config, "float64")
        layer.load(weights)
        output, _ = layer(Call(hidden, None, None, None, {}))
        assert error_of(output, expected) <= SINGLE, number


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_model_gives_transformers_own_logits(case: str, folder: Path) -> None:
    """What is around the attention is read too: norms, their places, activations, scales, softcaps."""
    model = Transformer.from_checkpoint(saved(case, folder)[1], dtype=np.float64)
    assert error_of(model(PROMPTS), recorded(case, folder).logits) <= SINGLE


def test_layers_of_linear_attention_are_left_out(folder: Path) -> None:
    """The others keep their numbers in the file; the whole model is refused by name."""
    for case, family, numbers in (("qwen3_next", "qwen3_next", (3, 7)), ("qwen3_5", "qwen3_5_text", (1, 2, 4))):
        checkpoint = open_checkpoint(saved(case, folder)[1])
        read = read_attention(checkpoint)
        assert read.numbers == numbers
        origins = {read.weights.origin(f"blocks.{i}.attention.k_proj.weight") for i in range(len(numbers))}
        assert origins == {f"model.layers.{number}.self_attn.k_proj.weight" for number in numbers}
        assert describe(checkpoint.path)["numbers_of_layers"] == ", ".join(map(str, numbers))
        with pytest.raises(CheckpointError, match=f"linear_attention of family {family} is not supported"):
            read_model(checkpoint)
    settings = {**checkpoint.settings, "layer_types": ["linear_attention"] * 5}
    with pytest.raises(CheckpointError, match=r"layer_types .* is not supported: no layer has attention$"):
        read_attention(stand_in(settings))

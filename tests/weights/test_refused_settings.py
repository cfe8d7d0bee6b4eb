"""Settings that are not understood: refused by name, in one clear sentence, however odd they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqa_weights.checkpoint import CheckpointError
from gqa_weights.families import read_model
from gqa_weights.families.config_json import SIZES as SIZE_KEYS
from gqa_weights.families.rope_json import OPTIONS
from tests.weights.small_models import HUGGINGFACE, SIZES, YARN, least_settings, stand_in

pytestmark = pytest.mark.no_shape_checks

REFUSED = {
    "unknown family": (
        {"model_type": "mamba"},
        "here: unknown family 'mamba', known are llama, mistral, .*; and the text of .*gemma3",
    ),
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
    "another window": (
        {"model_type": "gemma2", "sliding_window": 5, "sliding_window_size": 7},
        "sliding_window_size 7 of family gemma2 is not supported",
    ),
    "not causal": ({"is_causal": False}, "is_causal False of family llama is not supported"),
    "no rope": ({"use_rope": False}, "use_rope False of family llama is not supported"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 of family llama is not supported"),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7}},
        "rope_scaling original_max_position_embeddings 7 with type 'dynamic'",
    ),
    "unknown key": (
        {"num_experts": 8, "attention_sinks": True},
        "config.json: unknown settings of family llama: num_experts = 8, attention_sinks = True",
    ),
    "activation": ({"hidden_act": "mish"}, "hidden_act 'mish' of family llama is not supported"),
    "missing": ({"hidden_size": ...}, "config.json: hidden_size is missing, which family llama needs"),
    "wrong kind": ({"hidden_size": "24"}, "expected an integer >= 1 and <= 2147483647, got '24'"),
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
    "experts": ({"model_type": "glm4_moe"}, "config.json: n_routed_experts of family glm4_moe is not supported"),
    "too many experts": (
        {"model_type": "mixtral", "num_local_experts": 2**30},
        "config.json: num_experts: expected at most 100000 in all layers, got X = 1073741824",
    ),
    "two numbers of experts": (
        {"model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 5},
        "num_experts 4 of family qwen3_moe is not supported beside num_local_experts 5",
    ),
    "more experts than there are": (
        {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
        "num_experts_per_token: expected at most X = 2, got 3",
    ),
    "layers without experts": (
        {"model_type": "qwen3_moe", "mlp_only_layers": "1"},
        "mlp_only_layers of family qwen3_moe: expected a list of numbers of layers, got '1'",
    ),
}


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
    None,
    True,
    0,
    -1,
    3,
    10**400,
    0.5,
    1e-320,
    float("nan"),
    float("inf"),
    "x",
    "full_attention",
    [],
    [1],
    [[]] * 5,
    ["sliding_attention"] * 5,
    {},
    {"rope_type": []},
    {"rope_type": "yarn"},
    {"rope_type": "dynamic", "factor": 2},
    {"rope_type": "longrope", "short_factor": ["a"], "long_factor": [1]},
    {"full_attention": {"rope_theta": "x"}},
]


@given(family=st.sampled_from(list(HUGGINGFACE)), data=st.data())
@settings(max_examples=300, deadline=None)
def test_odd_settings_give_one_clear_error_or_a_config(family: str, data: st.DataObject) -> None:
    keys = [*HUGGINGFACE[family].defaults, *SIZE_KEYS, "model_type"]
    odd = data.draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(ODD), min_size=1, max_size=3))
    with pytest.raises(CheckpointError, match="here: "):  # the tensors, at the latest, are missing
        read_model(stand_in(least_settings(family) | {"model_type": family} | odd))

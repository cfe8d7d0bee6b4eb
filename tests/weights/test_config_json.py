"""config.json: what each key means is what it means to transformers, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.families import FAMILIES, ReadOnlyFamilyError, detect, model_settings, read_model
from gqa_weights.families.config_json import SIZES as SIZE_KEYS
from gqa_weights.port import plan
from tests.weights.small_models import (
    HUGGINGFACE,
    PHI3_ROPE,
    SIZES,
    least_settings,
    saved,
    stand_in,
    transformers_config,
)

pytestmark = pytest.mark.no_shape_checks


def read_whole(family: str, settings: dict[str, Any]) -> ModelConfig:
    return FAMILIES[family].read_config(settings, {})


def read_layers(family: str, settings: dict[str, Any]) -> tuple[AttentionConfig, ...]:
    return FAMILIES[family].read_attention(settings, {})


def test_settings_there_and_back(whole_model: tuple[Any, Path]) -> None:
    """What we write beside a port, transformers reads as the config that it wrote itself, and we as ours."""
    _, path = whole_model
    checkpoint = open_checkpoint(path)
    read = read_model(checkpoint)
    written = json.loads(json.dumps(model_settings(read.family, read.config)))
    assert read_whole(read.family, written) == read.config
    original, again = (transformers_config(read.family, **s).to_dict() for s in (dict(checkpoint.settings), written))
    record = HUGGINGFACE[read.family]
    matter = set(record.defaults) | {record.keys.get(key, key) for key in SIZE_KEYS}
    matter -= {"max_window_layers", "no_rope_layer_interval", "sliding_window_pattern"}  # said by the lists of layers
    matter -= {"decoder_sparse_step", "mlp_only_layers"}  # any step is written as a list
    matter &= set(original)
    original |= {key: derive(original) for key, derive in DERIVED.items() if key in matter and original[key] is None}
    if record.rope.alpha:
        matter -= {"rope_parameters"}  # a stretched base is written as a base
    if read.family == "gemma":
        assert original["hidden_act"] == again["hidden_act"] == "gelu_pytorch_tanh"
    assert {key: plain(again[key]) for key in matter} == {key: plain(original[key]) for key in matter}
    assert detect(stand_in(written)) == read.family


def plain(value: Any) -> Any:
    """RoPE settings without what says nothing."""
    if not isinstance(value, dict):
        return value
    usual = {"partial_rotary_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
    kept = {key: plain(x) for key, x in value.items() if key != "type" and (key not in usual or x != usual[key])}
    if kept.get("rope_type") == "longrope":
        kept.pop("factor", None)
    return kept


# Derived in transformers where None: key -> from its config's values.
DERIVED = {
    "num_key_value_heads": lambda theirs: theirs["num_attention_heads"],
    "num_kv_heads": lambda theirs: theirs["num_attention_heads"],
    "head_dim": lambda theirs: theirs["hidden_size"] // theirs["num_attention_heads"],
    "ffn_hidden_size": lambda theirs: 4 * theirs["hidden_size"],
}
LISTS = ("rope_parameters", "layer_types", "no_rope_layers")


@pytest.mark.parametrize("family", HUGGINGFACE)
def test_defaults_are_those_of_transformers(family: str) -> None:
    """A key left out, one after the other, means the same to both; with all left out too."""
    record, theirs = HUGGINGFACE[family], transformers_config(family).to_dict()
    for key, value in record.defaults.items():
        if key not in theirs or key in LISTS:
            continue
        if key in DERIVED and value is None:
            assert theirs[key] in (None, DERIVED[key](theirs)), key
        elif key == "sliding_window" and value != theirs[key]:
            assert not theirs[key], key
            assert not theirs["use_sliding_window"], key
        else:
            assert value == theirs[key], key
    sizes = (record.keys.get(key, key) for key in SIZE_KEYS)
    least = {key: theirs[key] for key in sizes if key in theirs} | record.requires
    if family == "glm4_moe":  # whose default sizes make heads of 42, half of which is odd
        least["head_dim"] = 128
    full = json.loads(transformers_config(family, **least).to_json_string())
    assert read_layers(family, least) == read_layers(family, full)
    if not record.attention_only:
        assert read_whole(family, least) == read_whole(family, full)


FLAGS = """attention_bias attention_out_bias tie_word_embeddings mlp_bias use_bias bias use_qkv_bias qkv_bias
    use_sliding_window use_parallel_residual new_decoder_architecture parallel_attn alibi use_qk_norm norm_topk_prob"""
NUMBERS = """rms_norm_eps norm_epsilon layer_norm_eps layer_norm_epsilon norm_eps attention_dropout embd_pdrop
    resid_pdrop embedding_dropout residual_dropout hidden_dropout embedding_multiplier residual_multiplier
    attention_multiplier logits_scaling logit_scale swiglu_limit swiglu_alpha"""
NOT_OF_ATTENTION = ("hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


@pytest.mark.parametrize("family", HUGGINGFACE)
def test_every_setting_that_is_understood_is_used(family: str) -> None:
    """Each key changes the config that results, or is refused: none is read and dropped."""
    record = HUGGINGFACE[family]
    base = least_settings(family) | {record.keys.get("rope_theta", "rope_theta"): 77.0, "num_hidden_layers": 7}
    flags = {key: [True, False] for key in FLAGS.split()}
    numbers = {key: [0.35] for key in NUMBERS.split()}
    changes: dict[str, list[Any]] = flags | numbers | {
        "num_key_value_heads": [3], "num_kv_heads": [3], "head_dim": [14, 16], "hidden_act": ["gelu", "silu"],
        "hidden_activation": ["silu"], "activation": ["silu"], "ffn_hidden_size": [99],
        "max_position_embeddings": [99], "sliding_window": [3], "query_pre_attn_scalar": [3],
        "final_logit_softcapping": [5.0], "attn_logit_softcapping": [5.0], "rope_theta": [99.0],
        "rotary_emb_base": [99.0], "rope_local_base_freq": [99.0], "sliding_window_pattern": [2],
        "layer_types": [["full_attention", "sliding_attention", *["full_attention"] * 5]],
        "max_window_layers": [1], "no_rope_layers": [[1, 0, 1, 1, 1, 1, 1]], "no_rope_layer_interval": [2],
        "partial_rotary_factor": [0.5, 1.0], "rotary_pct": [0.5], "rotary_dim": [2],
        "original_max_position_embeddings": [32], "num_ln_in_parallel_attn": [1],
        "rope_parameters": [{"rope_type": "linear", "factor": 2.0}, {"full_attention": {"rope_theta": 3.0}}],
        "rope_scaling": [{"rope_type": "linear", "factor": 2.0}],
        "num_experts": [11], "num_local_experts": [11], "num_experts_per_tok": [1], "moe_intermediate_size": [3],
        "shared_expert_intermediate_size": [3], "shared_intermediate_size": [3], "decoder_sparse_step": [3],
        "mlp_only_layers": [[1]], "full_attention_interval": [2],
    }  # fmt: skip
    beside = {
        "max_window_layers": {"use_sliding_window": True, "sliding_window": 4},
        "use_sliding_window": {"max_window_layers": 2, "sliding_window": 4},
        "layer_types": {"use_sliding_window": True, "sliding_window": 4},
        "sliding_window": {"use_sliding_window": True, "max_window_layers": 2},
        "original_max_position_embeddings": {"rope_scaling": {**PHI3_ROPE, "partial_rotary_factor": 1.0}},
    }
    for key in record.defaults:
        given = base | {k: v for k, v in beside.get(key, {}).items() if k in record.defaults}
        assert any(differs(family, given, {key: value}) for value in changes[key]), key


def differs(family: str, settings: dict[str, Any], change: dict[str, Any]) -> bool:
    (key,) = change
    if HUGGINGFACE[family].attention_only and key in NOT_OF_ATTENTION:
        return True
    read = read_layers if HUGGINGFACE[family].attention_only else read_whole
    before = read(family, settings)
    try:
        return before != read(family, settings | change)
    except ValueError as error:
        return key in str(error)


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
    "olmo3": ("olmo3", {"sliding_window": 5}),
    "exaone4": ("exaone4", {"sliding_window": 5, "sliding_window_pattern": 3}),
    "cohere2": ("cohere2", {"sliding_window": 5, "sliding_window_pattern": 2}),
    "ministral": ("ministral", {"sliding_window": 5}),
    "qwen2_moe": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
}


@pytest.mark.parametrize("rule", RULES)
def test_layers_follow_from_the_old_settings(rule: str) -> None:
    family, settings = RULES[rule]
    theirs = transformers_config(family, **SIZES | settings)
    layers = read_layers(family, SIZES | settings)
    window = settings.get("sliding_window")
    assert [layer.window for layer in layers] == [
        window if kind == "sliding_attention" else None for kind in theirs.layer_types
    ]
    rotates = getattr(theirs, "no_rope_layers", [1] * len(layers))
    if family in ("cohere2", "exaone4"):
        rotates = [kind == "sliding_attention" for kind in theirs.layer_types]
    assert [layer.rope is not None for layer in layers] == list(map(bool, rotates))


def test_gemmas_first_files_say_gelu_and_mean_its_approximation() -> None:
    """They hold hidden_activation too, which transformers reads in Gemma 2 and 3 alone."""
    for old in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}):
        assert transformers_config("gemma", **SIZES | old).hidden_act == "gelu_pytorch_tanh"
        assert read_whole("gemma", SIZES | old).activation == "gelu_tanh"


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
    config = read_whole(family, settings)
    assert config.param_count == expected["param_count"]
    new_style = json.loads(transformers_config(family, **settings).to_json_string())
    new_style = {key: value for key, value in new_style.items() if key not in ("rope_scaling", "rope_theta")}
    assert "rope_parameters" in new_style
    assert read_whole(family, new_style) == config
    if family == "phi3":  # the name in its first files, which transformers 5 no longer reads
        su = settings | {"rope_scaling": {**settings["rope_scaling"], "type": "su"}}
        assert read_whole(family, su) == config


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
    with pytest.raises(ReadOnlyFamilyError, match=r"family qwen3_next can be read, but not written"):
        model_settings("qwen3_next", config)


# --- what the maths does not read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HUGGINGFACE)
def test_a_full_dump_of_settings_is_read(family: str) -> None:
    """`to_dict()` of transformers 5, with the keys that transformers 4 dumped beside them."""
    least = least_settings(family)
    dump = json.loads(json.dumps(transformers_config(family, **least).to_dict(), default=str))
    old = {
        "max_length": 20, "min_length": 0, "num_beams": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
        "pruned_heads": {}, "bad_words_ids": None, "return_dict": True, "torchscript": False, "use_bfloat16": False,
        "tie_encoder_decoder": False, "cross_attention_hidden_size": None, "diversity_penalty": 0.0,
    }  # fmt: skip
    assert read_layers(family, dump | old) == read_layers(family, dump)
    windows = [[layer.window for layer in read_layers(family, settings)] for settings in (dump, least)]
    assert windows[0] == windows[1]


UNREAD: dict[str, tuple[str, dict[str, Any]]] = {
    "Phi-4-mini": (
        "phi3",
        {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
         "attention_bias": False},
    ),
    "SmolLM3": ("smollm3", {"max_window_layers": 28}),
    "Gemma 2": ("gemma2", {"sliding_window": 5, "sliding_window_size": 5}),
    "dense model of a sparse family": ("llama", {"num_local_experts": 0, "moe": {}, "experts": None}),
    "switched off": ("qwen2", {"use_mrope": False, "rope_interleaved": None, "quantization_config": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_what_the_code_never_reads_changes_nothing(name: str) -> None:
    family, settings = UNREAD[name]
    base = {key: value for key, value in settings.items() if key in HUGGINGFACE[family].defaults}
    assert read_whole(family, SIZES | settings) == read_whole(family, SIZES | base)


def test_a_fine_tunes_mark_in_rope_scaling_changes_nothing() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    marked = scaling | {"finetuned": True, "mscale": 0, "beta_fast": None}
    read = [read_whole("llama", SIZES | {"rope_scaling": values}) for values in (marked, scaling)]
    assert read[0] == read[1]


def test_a_setting_can_be_ignored_by_name(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved("llama plain", folder)[1])
    settings, tensors = dict(checkpoint.settings), {name: checkpoint[name] for name in checkpoint}
    odd = stand_in(settings | {"attention_sinks": True}, tensors)
    with pytest.raises(CheckpointError, match="unknown settings of family llama: attention_sinks = True"):
        read_model(odd)
    model = read_model(odd, ignore=["attention_sinks"])
    assert model.config == read_model(checkpoint).config
    assert model.ignored == ("attention_sinks",)
    with pytest.raises(CheckpointError, match=r"config.json: no setting 'sinks' to ignore"):
        read_model(odd, ignore=["sinks"])
    path = tmp_path / "odd"
    listed = [(name, TensorInfo(x.shape, x.dtype.name), lambda x=x: x) for name, x in tensors.items()]
    save_checkpoint(path, listed, settings=settings | {"attention_sinks": True})
    stated = plan(path, "llama", ignore=["attention_sinks"]).manifest
    assert stated["source"]["ignored_settings"] == "attention_sinks"


def test_settings_of_linear_attention_do_not_matter_to_the_others() -> None:
    """Qwen 3.5's files say `output_gate_type`, which transformers does not read: attention's gate is a sigmoid."""
    plain = least_settings("qwen3_5_text")
    said = {"output_gate_type": "swish", "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1}
    assert read_layers("qwen3_5_text", plain | said | {"attn_output_gate": True}) == read_layers("qwen3_5_text", plain)
    with pytest.raises(ValueError, match="attn_output_gate False of family qwen3_5_text is not supported"):
        read_layers("qwen3_5_text", plain | {"attn_output_gate": False})

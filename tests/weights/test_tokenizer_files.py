"""Tokenizers that a checkpoint carries: what a file's state must not change, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gqa_weights import port
from gqa_weights.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from gqa_weights.checkpoint.tensors import Contents
from gqa_weights.gguf_tokenizer import PRE, tokenizer_files
from gqa_weights.tokenizer import read_tokenizer
from tests.weights.fuzz import sources

pytestmark = pytest.mark.no_shape_checks
tokenizers = pytest.importorskip("tokenizers")

TEXT = "hello hello hello hello 1234\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its tokenizer.json has padding to 16 and truncation at 8, as one that was saved in use."""
    sources.huggingface(tmp_path / "model")
    return tmp_path / "model"


def edited(folder: Path, **values: Any) -> Checkpoint:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return open_checkpoint(folder)


def test_padding_and_truncation_of_a_file_are_off(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    assert (state["padding"]["strategy"], state["truncation"]["max_length"]) == ({"Fixed": 16}, 8)
    tokens = read_tokenizer(open_checkpoint(folder)).encode(TEXT)
    assert len(tokens) > 8
    plain = read_tokenizer(edited(folder, padding=None, truncation=None))
    assert plain.encode(TEXT) == tokens
    assert len(plain.encode("h")) == 1
    huge = {**state["padding"], "strategy": {"Fixed": 10**9}}
    assert read_tokenizer(edited(folder, padding=huge)).encode(TEXT) == tokens


MALFORMED: dict[str, Any] = {
    "no JSON": b"{",
    "nothing in it": b"{}",
    "a list": b"[]",
    "merges of unknown tokens": {"merges": [["x", "yz"]]},
    "merges that are numbers": {"merges": [1, 2]},
    "negative ids": {"vocab": {"a": -1}, "merges": []},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_tokenizer_is_one_sentence(case: str, folder: Path) -> None:
    file, change = folder / "tokenizer.json", MALFORMED[case]
    if isinstance(change, bytes):
        file.write_bytes(change)
    else:
        parsed = json.loads(file.read_text())
        parsed["model"] |= change
        file.write_text(json.dumps(parsed))
    with pytest.raises(CheckpointError) as raised:
        read_tokenizer(open_checkpoint(folder))
    assert str(raised.value).startswith(f"{file}: ")
    assert str(raised.value).isprintable()


class PanicException(BaseException):
    """As the package's Rust code raises it, under a name that it does not export."""


class Panics:
    def no_padding(self) -> None: ...

    def no_truncation(self) -> None: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        raise PanicException("index out of bounds")

    def decode(self, tokens: list[int]) -> str:
        raise Exception("a bare one")


def test_panics_and_bare_exceptions_are_one_sentence(tmp_path: Path) -> None:
    from gqa_weights.tokenizer import Tokenizer

    tokenizer = Tokenizer(tmp_path / "tokenizer.json", Panics(), ())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer cannot be used: index out of bounds"):
        tokenizer.encode("x")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: a bare one \(Exception\)"):
        tokenizer.decode([1])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        tokenizer.stream()(2**40)


# --- GGUF ------------------------------------------------------------------------------------------------------------

WORDS = [*(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "he", "ll", "hello", "<s>", "</s>", "<usr>"]


def gguf(**fields: Any) -> Checkpoint:
    """hello is a word of the vocabulary, which its merges do not reach: he ll o."""
    given = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": WORDS,
        "merges": ["h e", "l l"],
        "bos_token_id": WORDS.index("<s>"),
        "eos_token_id": WORDS.index("</s>"),
        "token_type": [1] * (len(WORDS) - 3) + [3, 3, 4],
        **fields,
    }
    settings = {f"tokenizer.ggml.{name}": value for name, value in given.items() if value is not None}
    settings["tokenizer.chat_template"] = "{{ messages }}"
    return Checkpoint(Path("one.gguf"), Contents("gguf", {}, settings))


def words(checkpoint: Checkpoint, text: str) -> list[str]:
    return [WORDS[token] for token in read_tokenizer(checkpoint).encode(text)]


def test_what_a_pre_type_implies_holds_where_the_file_is_silent() -> None:
    """llama.cpp: llama-bpe takes a word of the vocabulary whole and begins with the token for that; gpt-2 does not."""
    assert words(gguf(), "hello") == ["<s>", "hello"]
    assert words(gguf(add_bos_token=False), "hello") == ["hello"]
    assert words(gguf(pre="gpt-2"), "hello") == ["he", "ll", "o"]
    assert words(gguf(pre="gpt-2", add_bos_token=True), "hello") == ["<s>", "he", "ll", "o"]
    assert words(gguf(bos_token_id=None), "hello") == ["hello"]
    assert words(gguf(pre="qwen2"), "<usr>x</s>") == ["<usr>", "x", "</s>"]


CUTS = {
    "llama-bpe": ["hello", "Ġ", "123", "45", "Ċ"],
    "qwen2": ["hello", "Ġ", "1", "2", "3", "4", "5", "Ċ"],
    "gpt-2": ["hello", "Ġ12345", "Ċ"],
    "smollm": ["hello", "Ġ", "1", "2", "3", "4", "5", "Ċ"],
    "default": ["hello", "Ġ", "123", "45", "Ċ"],
    "gpt-4o": ["hello", "Ġ", "123", "45", "Ċ"],
    "tekken": ["hello", "Ġ", "1", "2", "3", "4", "5", "Ċ"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_as_the_pre_type_says(pre: str) -> None:
    from gqa_weights.gguf_tokenizer import _pre_tokenizer

    assert [piece for piece, _ in _pre_tokenizer(PRE[pre]).pre_tokenize_str("hello 12345\n")] == CUTS[pre]


def test_a_pre_type_or_a_model_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"one\.gguf: tokenizer\.ggml\.pre 'new-model' is not known, known are"):
        read_tokenizer(gguf(pre="new-model"))
    for fields, said in (
        ({"model": "bert"}, "expected tokenizer.ggml.model 'gpt2'"),
        ({"model": "llama"}, "expected a score and a token type for each"),
        ({"tokens": None}, "expected a vocabulary"),
        ({"tokens": [1, 2]}, "expected a vocabulary"),
        ({"tokens": [*WORDS, "he"]}, "one token is given twice"),
        ({"merges": ["h"]}, "expected two tokens, got 'h'"),
        ({"merges": ["h zz"]}, "one.gguf: "),
        ({"pre": ["llama-bpe"]}, "is not known"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_tokenizer(gguf(**fields))


def test_the_files_made_of_a_vocabulary_give_the_same_tokens(tmp_path: Path) -> None:
    checkpoint = gguf()
    made = tokenizer_files(checkpoint)
    (tmp_path / "tokenizer.json").write_text(json.dumps(made["tokenizer.json"]))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("hello", "hello 12</s> <usr>", ""):
        assert library.encode(text).ids == read_tokenizer(checkpoint).encode(text)
    config = made["tokenizer_config.json"]
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == ("<s>", "</s>", "{{ messages }}")
    assert made["generation_config.json"] == {
        "bos_token_id": WORDS.index("<s>"),
        "eos_token_id": WORDS.index("</s>"),
    }


def test_a_port_of_a_gguf_carries_its_tokenizer_and_ids(tmp_path: Path) -> None:
    sources.huggingface(tmp_path / "source")
    sources.gguf(tmp_path, tmp_path / "source")
    port.write(port.plan(tmp_path / "one.gguf", "huggingface"), tmp_path / "dest")
    ours, theirs = (read_tokenizer(open_checkpoint(tmp_path / name)) for name in ("one.gguf", "dest"))
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.encode(TEXT)[0] == len(sources.WORDS) - 2
    assert ours.stop_tokens == theirs.stop_tokens == (len(sources.WORDS) - 1,)
    config = json.loads((tmp_path / "dest" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (102, 103, None)

"""SentencePiece vocabularies of GGUF files, beside a second way to write down what llama.cpp does with them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.tensors import Contents
from gqa_weights.gguf_tokenizer import tokenizer_files
from gqa_weights.tokenizer import read_tokenizer

pytestmark = pytest.mark.no_shape_checks
tokenizers = pytest.importorskip("tokenizers")

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁t", "he", "▁the", "in", "er", "▁in", "the", "hin", "thin", "▁a", "an", "▁an", "ab", "ba", "aba", "▁▁", "é▁"]
LETTERS = [*"▁theinrabé"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, *LETTERS, "<usr>"]
KINDS = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) + len(LETTERS)), 4]
SCORES = [0.0] * 259 + [-float(i) for i in range(len(PIECES) + len(LETTERS))] + [0.0]


def gguf(**fields: Any) -> Checkpoint:
    given = {
        "model": "llama", "tokens": TOKENS, "scores": SCORES, "token_type": KINDS, "bos_token_id": 1,
        "eos_token_id": 2, "unknown_token_id": 0, **fields,
    }  # fmt: skip
    settings = {f"tokenizer.ggml.{name}": value for name, value in given.items() if value is not None}
    return Checkpoint(Path("one.gguf"), Contents("gguf", {}, settings))


def as_llama_cpp(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """Neighbours whose text is a token are joined, the highest score first, then the leftmost; the rest is bytes."""
    numbers, parts = {token: number for number, token in enumerate(tokens)}, list(text.replace(" ", "▁"))
    while True:
        pairs = enumerate(a + b for a, b in pairwise(parts))
        joined = [(-scores[numbers[pair]], i) for i, pair in pairs if pair in numbers]
        if not joined:
            break
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    found: list[int] = []
    for part in parts:
        found += [numbers[part]] if part in numbers else [numbers[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_text_is_joined_by_scores(prefix: bool) -> None:
    tokenizer = read_tokenizer(gguf(add_space_prefix=prefix))
    rng = np.random.default_rng(0)
    for length in rng.integers(1, 40, size=300):
        text = "".join(rng.choice([*" theinrabé", "Z", "語"], size=length))
        expected = as_llama_cpp(" " * prefix + text, TOKENS, SCORES)
        assert tokenizer.encode(text) == [1, *expected]
        assert tokenizer.decode(expected) == text


def test_what_holds_where_the_file_is_silent() -> None:
    """A space and <s> in front; each text after a special token has a space of its own."""
    number = {token: i for i, token in enumerate(TOKENS)}
    assert read_tokenizer(gguf()).encode("the") == [1, number["▁the"]]
    assert read_tokenizer(gguf(add_bos_token=False)).encode("the") == [number["▁the"]]
    assert read_tokenizer(gguf(add_space_prefix=False)).encode("the") == [1, number["the"]]
    found = read_tokenizer(gguf()).encode("the<usr>the</s>")
    assert found == [1, number["▁the"], number["<usr>"], number["▁the"], 2]
    assert read_tokenizer(gguf()).stop_tokens == (2,)


def test_the_files_made_of_it_give_the_same_tokens(tmp_path: Path) -> None:
    made = tokenizer_files(gguf())
    (tmp_path / "tokenizer.json").write_text(json.dumps(made["tokenizer.json"]))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("the thin aba", "é 語", "a<usr>b</s>"):
        assert library.encode(text).ids == read_tokenizer(gguf()).encode(text)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scores": None}, "expected a score and a token type for each of"),
        ({"scores": SCORES[1:]}, "expected a score and a token type for each of"),
        ({"scores": [float("nan")] * len(SCORES)}, "expected a score and a token type for each of"),
        ({"token_type": None}, "expected a score and a token type for each of"),
        ({"scores": [0.0] * len(SCORES)}, "have one score 0.0: not supported"),
        ({"tokens": [token.replace("<0x41>", "<0x411>") for token in TOKENS]}, "without the byte token <0x41>"),
        ({"tokens": [token.replace("▁▁", "▁" * 600) for token in TOKENS]}, "at most 512 characters, got one of 600"),
        ({"tokens": [token.replace("thin", "thix") for token in TOKENS]}, "has the character 'x', which is no token"),
    ],
)
def test_a_vocabulary_that_ranks_cannot_say_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_tokenizer(gguf(**fields))

"""A checkpoint's own tokenizer: tokenizer.json beside the weights, or the vocabulary inside a GGUF file. SPEC 19.

Everything is done by `tokenizers`, which is imported only here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.json_files import read as read_json

CONTROL, USER_DEFINED = 3, 4  # kinds of token in a GGUF file
# How text is cut before byte pairs are merged, by the name that llama.cpp gives it (src/llama-vocab.cpp).
SPLITS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
}
DIGITS = ("smollm",)
PLAIN = ("gpt-2", "default")


class Tokenizer:
    """Text to tokens and back. stop_tokens: those after which the checkpoint's text ends."""

    def __init__(self, tokenizer: Any, stop_tokens: tuple[int, ...], first: tuple[int, ...] = ()) -> None:
        self._tokenizer, self._first = tokenizer, first
        self.stop_tokens = stop_tokens

    def encode(self, text: str) -> list[int]:
        """With the tokens that the checkpoint puts first, such as one for the beginning of a text."""
        return [*self._first, *self._tokenizer.encode(text).ids]

    def decode(self, tokens: list[int]) -> str:
        """Without special tokens."""
        return self._tokenizer.decode(tokens)

    def stream(self) -> Callable[[int], str]:
        """A function from the next token to the text that is now certain: a character may take several tokens."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own tokenizer.

    Raises:
        CheckpointError: For a checkpoint without a tokenizer, and for one of an unknown kind.
    """
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint)
    from tokenizers import Tokenizer as Library

    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{checkpoint.path}: expected a tokenizer.json beside the weights, got none")
    try:
        library = Library.from_file(str(file))
    except Exception as error:  # what tokenizers raises is a bare Exception
        raise CheckpointError(f"{file}: no tokenizer that can be read: {error}") from error
    return Tokenizer(library, _stop_tokens(folder, checkpoint.settings))


def _stop_tokens(folder: Path, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """From generation_config.json, else from config.json."""
    given = read_json(folder / "generation_config.json").get("eos_token_id", settings.get("eos_token_id"))
    listed = given if isinstance(given, list) else [given]
    return tuple(token for token in listed if isinstance(token, int))


def _from_gguf(checkpoint: Checkpoint) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Library

    def field(name: str, default: Any = None) -> Any:
        return checkpoint.settings.get(f"tokenizer.ggml.{name}", default)

    if field("tokens") is None:
        raise CheckpointError(f"{checkpoint.path}: expected a vocabulary, tokenizer.ggml.tokens, got none")
    if field("model") != "gpt2" or field("merges") is None:
        raise CheckpointError(
            f"{checkpoint.path}: expected tokenizer.ggml.model 'gpt2' (byte pairs) with merges, got {field('model')!r}"
        )
    vocabulary = {token: number for number, token in enumerate(field("tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    library = Library(models.BPE(vocabulary, merges))
    library.pre_tokenizer = _pre_tokenizer(checkpoint, field("pre", "default"))
    library.decoder = decoders.ByteLevel()
    kinds = dict(zip(vocabulary, field("token_type", ()), strict=False))
    library.add_special_tokens([AddedToken(t, special=True) for t, kind in kinds.items() if kind == CONTROL])
    library.add_tokens([AddedToken(t) for t, kind in kinds.items() if kind == USER_DEFINED])
    first = (field("bos_token_id"),) if field("add_bos_token", False) else ()
    stop = tuple(token for token in (field("eos_token_id"), field("eot_token_id")) if token is not None)
    return Tokenizer(library, stop, first)


def _pre_tokenizer(checkpoint: Checkpoint, kind: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if kind in PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in DIGITS:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if kind in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join((*PLAIN, *DIGITS, *SPLITS))
    raise CheckpointError(f"{checkpoint.path}: expected tokenizer.ggml.pre of {known}, got {kind!r}")

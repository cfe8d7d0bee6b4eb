"""A checkpoint's own tokenizer: tokenizer.json beside the weights, or the vocabulary inside a GGUF file. SPEC 19.

Everything is done by `tokenizers`, which is imported only here and in gguf_tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqa_weights import gguf_tokenizer
from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.json_files import check_size
from gqa_weights.checkpoint.json_files import read as read_json
from gqa_weights.checkpoint.tensors import reading

FILE = "tokenizer.json"
LARGEST = 2**26  # bytes of a tokenizer.json; the largest of known models has half of it


class Tokenizer:
    """Text to tokens and back.

    Attributes:
        path: The file that it comes from, which its errors name.
        stop_tokens: Those after which the checkpoint's text ends.
    """

    def __init__(self, path: Path, tokenizer: Any, stop_tokens: tuple[int, ...], first: tuple[int, ...] = ()) -> None:
        self.path = path
        self.stop_tokens = stop_tokens
        self._tokenizer, self._first = tokenizer, first
        # What a file may keep of the batch that it was last used on: it would pad or cut every prompt.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """With the tokens that the checkpoint puts first, such as one for the beginning of a text, unless special is
        False: a chat template has written its own.

        Raises:
            CheckpointError: Where the tokenizer fails on the text, as damaged files make it do.
        """
        with one_sentence(self.path):
            first = self._first if special else ()
            return [*first, *self._tokenizer.encode(text, add_special_tokens=special).ids]

    def decode(self, tokens: list[int]) -> str:
        """Without special tokens.

        Raises:
            CheckpointError: As `encode`.
        """
        with one_sentence(self.path):
            return self._tokenizer.decode(tokens)

    def stream(self) -> Callable[[int], str]:
        """A function from the next token to the text that is now certain: a character may take several tokens.

        Raises:
            CheckpointError: As `encode`, at each call of the function.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str:
            with one_sentence(self.path):
                return stream.step(self._tokenizer, token) or ""

        return step


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own tokenizer.

    Raises:
        CheckpointError: For a checkpoint without a tokenizer, for one of an unknown kind and for a damaged one.
    """
    if checkpoint.format == "gguf":
        with one_sentence(checkpoint.path):
            built = gguf_tokenizer.build(checkpoint)
            return Tokenizer(checkpoint.path, built.library, built.stop, built.first)
    from tokenizers import Tokenizer as Library

    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    file = folder / FILE
    if not is_file(file, within=folder):
        raise CheckpointError(f"{checkpoint.path}: expected a {FILE} beside the weights, got none")
    stop = _stop_tokens(folder, checkpoint.settings)
    with one_sentence(file):
        check_size(file.stat().st_size, LARGEST)
        return Tokenizer(file, Library.from_file(str(file)), stop)


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """The package raises bare Exceptions, and, where its Rust code panics, a BaseException that it does not export."""
    try:
        with reading(path):
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path}: the tokenizer cannot be used: {error}") from error


def _stop_tokens(folder: Path, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """From generation_config.json, else from config.json, of a larger model its own or its text's."""
    text = settings.get("text_config")
    places = [read_json(folder / "generation_config.json"), settings, text if isinstance(text, Mapping) else {}]
    given = next((place["eos_token_id"] for place in places if place.get("eos_token_id") is not None), None)
    listed = given if isinstance(given, list) else [given]
    return tuple(token for token in listed if isinstance(token, int) and not isinstance(token, bool))

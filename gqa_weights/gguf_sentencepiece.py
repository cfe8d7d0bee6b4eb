"""A SentencePiece vocabulary inside a GGUF file as a tokenizer of the package `tokenizers`.

llama.cpp (src/llama-vocab.cpp, llm_tokenizer_spm) joins two neighbours where the vocabulary has what they make, the
highest score first, of equal ones the leftmost. The package has ranks of pairs in the place of scores: the pairs that
make a token, in the order of its score. A vocabulary of which ranks would say something else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gqa_weights.checkpoint import CheckpointError

NORMAL, UNKNOWN = 1, 2  # kinds of token
SPACE = "\u2581"
LONGEST = 512  # characters of a token, of which every split is looked up; SentencePiece makes none of more than 16
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def library(path: Any, tokens: Sequence[str], scores: Any, kinds: Any, *, add_space_prefix: bool) -> Any:
    """The Tokenizer of the package, without special tokens.

    Raises:
        CheckpointError: For a vocabulary that the package cannot express.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    count = len(tokens)
    if not (_numbers(scores, count) and _numbers(kinds, count)):
        raise CheckpointError(f"{path}: expected a score and a token type for each of {count} tokens, got others")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    missing = next((byte for byte in BYTES if byte not in vocabulary), None)
    if missing is not None:
        raise CheckpointError(f"{path}: a SentencePiece vocabulary without the byte token {missing} is not supported")
    normal = {token: scores[number] for token, number in vocabulary.items() if kinds[number] == NORMAL}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    merges = _merges(path, normal, vocabulary)
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    prefix = [normalizers.Prepend(SPACE)] if add_space_prefix else []
    made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if add_space_prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return made


def _merges(path: Any, normal: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    pairs: list[tuple[float, int, str, str]] = []
    seen: dict[float, str] = {}
    for token, score in normal.items():
        if len(token) > LONGEST:
            raise CheckpointError(f"{path}: expected tokens of at most {LONGEST} characters, got one of {len(token):,}")
        absent = next((character for character in token if character not in normal), None)
        if absent is not None:
            raise CheckpointError(
                f"{path}: token {token!r} has the character {absent!r}, which is no token: not supported"
            )
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        splits = [(left, right) for left, right in splits if left in normal and right in normal]
        if splits and seen.setdefault(score, token) != token:
            raise CheckpointError(f"{path}: tokens {seen[score]!r} and {token!r} have one score {score}: not supported")
        pairs += [(-score, vocabulary[left], left, right) for left, right in splits]
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list) and len(values) == count and all(isinstance(x, int | float) and x == x for x in values)
    )

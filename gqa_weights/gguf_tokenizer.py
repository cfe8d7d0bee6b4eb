"""The vocabulary inside a GGUF file as a tokenizer of the package `tokenizers`.

How text is cut before byte pairs are merged, whether a word of the vocabulary is taken whole, and whether a text begins
with a token of its own, all follow from the name in `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp). A name that
is not in the table is refused: another cut gives other tokens, and the model answers nonsense without an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqa_weights import gguf_sentencepiece
from gqa_weights.checkpoint import Checkpoint, CheckpointError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of token
FIELD = "tokenizer.ggml."
SENTENCEPIECE = "llama"  # llama.cpp's name

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{SUFFIX}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{SUFFIX}|{WORDS}|\p{{N}}|{REST}"
QWEN35 = (
    rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{{0}}"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = CASED.replace("{0}", "") + rf"|\p{{N}}|{SYMBOLS}"
GPT4O = CASED.replace("{0}", f"{SUFFIX}?") + rf"|\p{{N}}{{1,3}}|{SYMBOLS}"
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
DEFAULT = (PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
SEED_CODER = rf"{SUFFIX}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Pre:
    """splits: what is cut apart, one pattern after the other. ignore_merges: a word of the vocabulary is one token,
    whatever its merges give. add_bos: what holds where the file has no add_bos_token.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


def _named(names: str, *splits: str, ignore_merges: bool = False, add_bos: bool = False) -> dict[str, Pre]:
    return dict.fromkeys(names.split(), Pre(splits, ignore_merges, add_bos))


PRE: Mapping[str, Pre] = {
    **_named("default", *DEFAULT),
    **_named("gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4", GPT2),
    **_named("mpt olmo jais trillion granite-docling", GPT2),
    **_named("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", r"\p{N}", GPT2),
    **_named(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2", LLAMA3, ignore_merges=True, add_bos=True
    ),
    **_named("dbrx smaug-bpe glm4 chatglm-bpe", LLAMA3),
    **_named("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open stablelm2 grok-2", QWEN2),
    **_named("qwen35", QWEN35),
    **_named("tekken", TEKKEN, ignore_merges=True, add_bos=True),
    **_named("gpt-4o llama4 kanana2 talkie minimax-m2", GPT4O),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", *DEEPSEEK3),
    **_named("deepseek-coder", *DEEPSEEK_CODER),
    **_named("falcon", *FALCON),
    **_named("bailingmoe bailingmoe2 llada-moe", *BAILING),
    **_named("seed-coder", SEED_CODER),
}


@dataclass(frozen=True)
class Built:
    """library: the Tokenizer of the package. first: tokens before each text; stop: those after which a text ends."""

    library: Any
    first: tuple[int, ...]
    stop: tuple[int, ...]


def build(checkpoint: Checkpoint) -> Built:
    """The tokenizer of a GGUF file.

    Raises:
        CheckpointError: For a file without a vocabulary of byte pairs or SentencePiece, for one that is cut in an
            unknown way, and for scores that the package cannot express.
    """
    from tokenizers import Tokenizer, decoders, models

    tokens = _tokens(checkpoint)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise CheckpointError(f"{checkpoint.path}: {FIELD}tokens: one token is given twice")
    sentencepiece = _field(checkpoint, "model", None) == SENTENCEPIECE
    if sentencepiece:
        kinds, prefix = _field(checkpoint, "token_type", None), _field(checkpoint, "add_space_prefix", True)
        scores = _field(checkpoint, "scores", None)
        library = gguf_sentencepiece.library(checkpoint.path, tokens, scores, kinds, add_space_prefix=prefix is True)
    else:
        merges, pre = _merges(checkpoint), _pre(checkpoint)
        library = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges))
        library.pre_tokenizer = _pre_tokenizer(pre)
        library.decoder = decoders.ByteLevel()
    _add_special(library, tokens, _field(checkpoint, "token_type", ()))
    bos = _id(checkpoint, "bos_token_id", len(tokens))
    begins = _field(checkpoint, "add_bos_token", sentencepiece or pre.add_bos) is True and bos is not None
    ends = (_id(checkpoint, name, len(tokens)) for name in ("eos_token_id", "eot_token_id"))
    return Built(library, (bos,) if begins and bos is not None else (), tuple(end for end in ends if end is not None))


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """The contents of tokenizer.json, tokenizer_config.json and generation_config.json for a GGUF's vocabulary.

    Raises:
        CheckpointError: As `build`.
        ModuleNotFoundError: Without the package tokenizers.
    """
    from tokenizers.processors import TemplateProcessing

    built, tokens = build(checkpoint), _field(checkpoint, "tokens", [])
    for first in built.first:
        built.library.post_processor = TemplateProcessing(
            single=f"{tokens[first]} $A", pair=f"{tokens[first]} $A $B", special_tokens=[(tokens[first], first)]
        )
    special = {name: _id(checkpoint, f"{field}_token_id", len(tokens)) for name, field in SPECIAL.items()}
    named = {f"{name}_token": tokens[number] for name, number in special.items() if number is not None}
    template = checkpoint.settings.get("tokenizer.chat_template")
    chat = {"chat_template": template} if isinstance(template, str) else {}
    ids: dict[str, Any] = {
        f"{name}_token_id": number for name, number in special.items() if number is not None and name != "unk"
    }
    if built.stop:
        ids["eos_token_id"] = built.stop[0] if len(built.stop) == 1 else list(built.stop)
    return {
        "tokenizer.json": json.loads(built.library.to_str()),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named, **chat},
        "generation_config.json": ids,
    }


def special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """The special tokens that a GGUF names, under the names of Hugging Face: bos_token, ..."""
    tokens = _field(checkpoint, "tokens", [])
    numbers = {name: _id(checkpoint, f"{field}_token_id", len(tokens)) for name, field in SPECIAL.items()}
    return {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _field(checkpoint: Checkpoint, name: str, default: Any) -> Any:
    return checkpoint.settings.get(FIELD + name, default)


def _tokens(checkpoint: Checkpoint) -> list[str]:
    tokens = _field(checkpoint, "tokens", None)
    if not _texts(tokens):
        raise CheckpointError(f"{checkpoint.path}: expected a vocabulary, {FIELD}tokens, got none")
    listed: list[str] = tokens
    return listed


def _merges(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    merges, model = (_field(checkpoint, name, None) for name in ("merges", "model"))
    if model != "gpt2" or not _texts(merges):
        raise CheckpointError(
            f"{checkpoint.path}: expected {FIELD}model 'gpt2' (byte pairs) with merges, or {SENTENCEPIECE!r} "
            f"(SentencePiece), got {model!r}"
        )
    pairs = []
    for merge in merges:
        first, space, second = merge[1:].partition(" ")  # a token may itself be a space
        if not space:
            raise CheckpointError(f"{checkpoint.path}: {FIELD}merges: expected two tokens, got {merge!r}")
        pairs.append((merge[:1] + first, second))
    return pairs


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _id(checkpoint: Checkpoint, name: str, count: int) -> int | None:
    number = _field(checkpoint, name, None)
    return number if isinstance(number, int) and 0 <= number < count else None


def _pre(checkpoint: Checkpoint) -> Pre:
    name = _field(checkpoint, "pre", "default")
    if not isinstance(name, str) or name not in PRE:
        known = ", ".join(PRE)
        raise CheckpointError(f"{checkpoint.path}: {FIELD}pre {name!r} is not known, known are {known}")
    return PRE[name]


def _pre_tokenizer(pre: Pre) -> Any:
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.splits]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_special(library: Any, tokens: list[str], kinds: Any) -> None:
    from tokenizers import AddedToken

    listed = list(zip(tokens, kinds, strict=False)) if isinstance(kinds, list) else []
    library.add_special_tokens([AddedToken(t, special=True) for t, kind in listed if kind in (UNKNOWN, CONTROL)])
    library.add_tokens([AddedToken(t, normalized=False) for t, kind in listed if kind == USER_DEFINED])

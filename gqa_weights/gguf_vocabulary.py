"""A checkpoint's tokenizer as the fields of a GGUF: byte pairs alone, cut in a way that has a name in llama.cpp.

The fields are proven before they are written: `gguf_tokenizer` builds a tokenizer from them, which has to cut a text of
many kinds of characters as tokenizer.json does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqa_weights import gguf_tokenizer
from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.json_files import check_size
from gqa_weights.checkpoint.json_files import read as read_json
from gqa_weights.checkpoint.tensors import Contents, reading
from gqa_weights.gguf_tokenizer import CONTROL, FIELD, GPT2, PRE, USER_DEFINED
from gqa_weights.tokenizer import FILE, LARGEST, read_tokenizer

Json = dict[str, Any]
OF_A_GGUF = "tokenizer."  # how the names of all these fields start
NORMAL, UNUSED = 1, 5  # kinds of token, beside those of gguf_tokenizer
SAMPLES = (
    "Hello, world! It's 2024-06-30; they'll pay $1,234.56 (or €99)...\n\n\n  def f(x):\n\treturn x**2  # ¿qué?\r\n",
    "ÄÖÜ straße Ñandú ЖИВОЙ мир 你好。世界 こんにちは カタカナ 한국어 العربية हिन्दी ไทย 🚀👩‍👩‍👧 1234567890 3½ ²",
    "hello  HelloWorld camelCase I'M WE'LL don't \u00a0 x_y z/// [PAD] \\n 'tis   ",
)


def vocabulary_fields(checkpoint: Checkpoint, rows: int) -> tuple[Json, list[str]]:
    """The fields of the source's tokenizer, and notes for the user.

    Args:
        checkpoint: The source: a GGUF, or one with a tokenizer.json in its folder.
        rows: Of the embedding: the vocabulary is filled up to it.

    Returns:
        The fields, {} with a note where there is no such tokenizer.
    """
    if checkpoint.format == "gguf":
        return {key: value for key, value in checkpoint.settings.items() if key.startswith(OF_A_GGUF)}, []
    try:
        with reading(checkpoint.path):
            fields = _fields(checkpoint, rows)
    except CheckpointError as error:
        return {}, [f"the file has no tokenizer: {error}"]
    return fields, [f"the tokenizer is in the file, cut as {fields[FIELD + 'pre']!r}"]


def _fields(checkpoint: Checkpoint, rows: int) -> Json:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    theirs = read_tokenizer(checkpoint)
    content = _content(folder / FILE)
    model = content["model"]
    _require_byte_pairs(folder / FILE, content)
    tokens, kinds = _tokens(folder / FILE, content, rows)
    fields: Json = {
        f"{FIELD}model": "gpt2",
        f"{FIELD}pre": _pre(folder / FILE, content),
        f"{FIELD}tokens": tokens,
        f"{FIELD}token_type": kinds,
        f"{FIELD}merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        **_special(folder, checkpoint.settings, theirs.stop_tokens, len(tokens)),
        **_chat_template(folder),
    }
    first = theirs.encode("a")[:1]
    fields[f"{FIELD}add_bos_token"] = first == [fields.get(f"{FIELD}bos_token_id")]
    _prove(folder / FILE, fields, theirs)
    return fields


def _content(path: Path) -> Json:
    check_size(path.stat().st_size, LARGEST)
    content: Json = json.loads(path.read_text("utf-8"))
    return content


def _require_byte_pairs(path: Path, content: Json) -> None:
    model, normalizer = content["model"], content.get("normalizer")
    odd = [key for key in ("byte_fallback", "end_of_word_suffix", "continuing_subword_prefix") if model.get(key)]
    if model.get("type") != "BPE" or odd or not model.get("merges"):
        what = f"{model.get('type')} with {', '.join(odd)}" if odd else model.get("type")
        raise CheckpointError(f"{path}: model: expected byte pairs with merges, got {what}")
    if normalizer is not None and normalizer.get("type") != "NFC":  # which llama.cpp leaves out
        raise CheckpointError(f"{path}: normalizer: expected none or NFC, got {normalizer.get('type')}")


def _tokens(path: Path, content: Json, rows: int) -> tuple[list[str], list[int]]:
    """By their ids; ids without a token are filled, as by llama.cpp's converter."""
    names = {number: token for token, number in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for added in content.get("added_tokens") or []:
        names[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if max(names, default=0) >= rows:
        raise CheckpointError(f"{path}: token {max(names)} has no row in an embedding of {rows} rows")
    return [names.get(n, f"[PAD{n}]") for n in range(rows)], [kinds.get(n, UNUSED) for n in range(rows)]


def _pre(path: Path, content: Json) -> str:
    """The name in llama.cpp of the way in which text is cut: the first of those that do the same."""
    splits, ignores = _splits(content.get("pre_tokenizer")), bool(content["model"].get("ignore_merges"))
    for name, pre in PRE.items():
        if pre.splits == splits and pre.ignore_merges == ignores:
            return name
    kind = "with" if ignores else "without"
    raise CheckpointError(
        f"{path}: pre_tokenizer: llama.cpp has no name for cutting text this way {kind} ignore_merges"
    )


def _splits(step: Any) -> tuple[str, ...] | None:
    """The patterns by which a pre_tokenizer cuts, one after the other; None for one that does more than that."""
    match step:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            found = [_splits(each) for each in steps]
            return None if None in found else tuple(pattern for each in found if each for pattern in each)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (GPT2,) if step.get("use_regex", True) else ()
        case {"type": "Digits", "individual_digits": True}:
            return (r"\p{N}",)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return (pattern,)
    return None


def _special(folder: Path, settings: Mapping[str, Any], stop: tuple[int, ...], count: int) -> Json:
    """Ids of special tokens; of several ends the second is that of a turn."""
    stated = {**settings, **read_json(folder / "generation_config.json")}
    eos, eot = (*stop, None, None)[:2]
    found = {"bos": stated.get("bos_token_id"), "eos": eos, "eot": eot, "padding": stated.get("pad_token_id")}
    return {
        f"{FIELD}{name}_token_id": number
        for name, number in found.items()
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count
    }


def _chat_template(folder: Path) -> Json:
    beside = folder / "chat_template.jinja"
    template = (
        beside.read_text("utf-8")
        if is_file(beside, within=folder)
        else read_json(folder / "tokenizer_config.json").get("chat_template")
    )
    return {"tokenizer.chat_template": template} if isinstance(template, str) and template else {}


def _prove(path: Path, fields: Json, theirs: Any) -> None:
    built = gguf_tokenizer.build(Checkpoint(path, Contents("gguf", {}, fields)))
    for sample in SAMPLES:
        wanted, got = theirs.encode(sample), [*built.first, *built.library.encode(sample).ids]
        if wanted != got:
            raise CheckpointError(f"{path}: a GGUF would cut text in another way, {sample[:24]!r}... for one")

"""What a port carries along beside the weights: settings that change no number, the tokenizer, generation settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.files import is_file
from gqa_weights.families import FAMILIES, MANIFEST
from gqa_weights.families.config_json import HuggingFaceFamily
from gqa_weights.families.generic_keys import IGNORED, ONLY
from gqa_weights.gguf_tokenizer import tokenizer_files
from gqa_weights.tokenizer import one_sentence

TRAVELLING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
LARGEST = 2**27  # bytes of one of these files; the largest tokenizers are a quarter of it
# Settings that say where a file came from, or what else is in its folder: not true of the port.
OF_THE_FILE = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "quantization_config",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
}
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
SETTINGS = "settings"  # the manifest's key for them


def carried_settings(checkpoint: Checkpoint, family: str) -> dict[str, Any]:
    """Settings of the source that no layout contradicts, in Hugging Face's names.

    Where nothing states the ids of special tokens they are null: without them transformers takes those of a class.
    """
    record, unknown = FAMILIES[family], dict.fromkeys(IDS)
    if isinstance(record, HuggingFaceFamily):
        known = (IGNORED | set(ONLY) | record.ignored) - OF_THE_FILE
        return {key: value for key, value in checkpoint.settings.items() if key in known}
    if record.file == MANIFEST:
        stored = checkpoint.manifest.get(SETTINGS)
        return {**stored} if isinstance(stored, Mapping) else {**unknown}
    if checkpoint.format == "gguf":
        fields = {key: checkpoint.settings.get(f"tokenizer.ggml.{field}") for key, field in IDS.items()}
        return {key: value if isinstance(value, int) else None for key, value in fields.items()}
    return {**unknown}


def carried_files(checkpoint: Checkpoint) -> tuple[dict[str, bytes | Path], list[str]]:
    """The source's tokenizer and generation settings: of a folder its own files, of a GGUF made from its fields.

    Returns:
        The files by name, and a note for what cannot be carried.
    """
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint)
    if not checkpoint.path.is_dir():
        return {}, []
    found: dict[str, bytes | Path] = {}
    for name in TRAVELLING:
        path = checkpoint.path / name
        if is_file(path, within=checkpoint.path):
            if path.stat().st_size > LARGEST:
                raise CheckpointError(f"{path}: expected at most {LARGEST:,} bytes, got {path.stat().st_size:,}")
            found[name] = path.resolve()
    return found, []


def _from_gguf(checkpoint: Checkpoint) -> tuple[dict[str, bytes | Path], list[str]]:
    try:
        with one_sentence(checkpoint.path):  # the package raises bare Exceptions from damaged vocabularies
            made = tokenizer_files(checkpoint)
    except CheckpointError as error:
        return {}, [f"the tokenizer is not carried: {error}"]
    return {name: json.dumps(content, indent=2, ensure_ascii=False).encode() for name, content in made.items()}, []

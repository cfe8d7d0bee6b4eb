"""The chat template of a checkpoint: a prompt becomes the first message of a conversation.

A template is a program from a file. It runs in Jinja's sandbox, with the filters and functions that transformers gives
it (transformers/utils/chat_template_utils.py) and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gqa_weights.checkpoint import Checkpoint, CheckpointError
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.json_files import check_size
from gqa_weights.checkpoint.json_files import read as read_json
from gqa_weights.gguf_tokenizer import special_tokens

LARGEST = 2**20  # characters of a template, and of what it makes
DEFAULT = "default"  # of several templates of a file
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_prompt(checkpoint: Checkpoint, text: str) -> str:
    """What the model reads where a user says `text`, up to the start of its answer.

    Raises:
        CheckpointError: For a checkpoint without a template, and for one that fails.
        ModuleNotFoundError: Without the package jinja2.
    """
    template, tokens = _gguf(checkpoint) if checkpoint.format == "gguf" else _folder(checkpoint)
    if not isinstance(template, str):
        raise CheckpointError(f"{checkpoint.path}: expected a tokenizer with a chat template, got none")
    if len(template) > LARGEST:
        raise CheckpointError(f"{checkpoint.path}: chat template: expected at most {LARGEST:,} characters")
    messages = [{"role": "user", "content": text}]
    try:
        made: str = (
            _environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever a program from a file raises
        raise CheckpointError(f"{checkpoint.path}: chat template: {error} ({type(error).__name__})") from error
    return made


def _gguf(checkpoint: Checkpoint) -> tuple[Any, Mapping[str, Any]]:
    return checkpoint.settings.get("tokenizer.chat_template"), special_tokens(checkpoint)


def _folder(checkpoint: Checkpoint) -> tuple[Any, Mapping[str, Any]]:
    """The newer file goes before the older place, as transformers has it."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    settings = {name: _read(folder / name, folder) for name in ("special_tokens_map.json", "tokenizer_config.json")}
    listed = {name: value for file in settings.values() for name, value in file.items() if name in NAMES}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in listed.items()}
    file = folder / "chat_template.jinja"
    if is_file(file, within=folder):
        check_size(file.stat().st_size, LARGEST)
        return file.read_text(encoding="utf-8"), tokens
    given = _read(folder / "chat_template.json", folder).get("chat_template")
    return _one(given or settings["tokenizer_config.json"].get("chat_template")), tokens


def _read(file: Path, folder: Path) -> Mapping[str, Any]:
    return read_json(file) if is_file(file, within=folder) else {}


def _one(given: Any) -> Any:
    """Of several templates the default."""
    if not isinstance(given, list):
        return given
    named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
    return named.get(DEFAULT)


def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block that marks what an assistant said: here it is text as any other."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment

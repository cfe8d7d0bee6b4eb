"""What the command does with a damaged checkpoint, and whether that is right."""

from __future__ import annotations

import json
import shutil
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from conformance.trace.models import verify
from gqa import app
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.port import open_model
from gqa_weights.tokenizer import read_tokenizer

LONGEST = 2000  # characters of a sentence


class Wrong(Exception):
    """The command did neither the right thing nor refused in one sentence."""


def judge(path: Path, dest: Path) -> tuple[str, ...]:
    """Run the commands on a checkpoint. Returns "read" or "refused" for each. Raises Wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (_inspect(path), _port(path, dest), _tokenizer(path))


def _inspect(path: Path) -> str:
    return _outcome(["inspect", str(path), "--json", "-"])


def _port(path: Path, dest: Path) -> str:
    """A port that succeeds holds what the damaged source holds, bit for bit."""
    try:
        outcome = _outcome(["port", str(path), str(dest), "--to", "canonical"])
        if outcome == "read":
            differing = [found for found in verify(open_model(path), open_model(dest), exact=True) if not found.same]
            if differing:
                raise Wrong(f"the port differs: {differing[0]}")
        elif dest.exists():
            raise Wrong("refused, and something was written")
        left = [name for name in dest.parent.iterdir() if name.name.endswith((".partial", ".old"))]
        if left:
            raise Wrong(f"left behind: {left}")
        return outcome
    finally:
        shutil.rmtree(dest, ignore_errors=True)


def _tokenizer(path: Path) -> str:
    try:
        tokenizer = read_tokenizer(open_checkpoint(path))
        tokens = tokenizer.encode("hello hello\nworld 123 é")
        step = tokenizer.stream()
        text = "".join(step(token) for token in [*tokens, 0, 1, *tokenizer.stop_tokens])
        if not isinstance(text + tokenizer.decode(tokens), str) or len(tokens) > 10_000:
            raise Wrong(f"{len(tokens)} tokens")
        return "read"
    except CheckpointError as error:
        _check_sentence(f"{error}\n")
        return "refused"


def _outcome(arguments: list[str]) -> str:
    result: Any = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Wrong(f"{arguments[0]}: {result.exception!r}") from result.exception
    if result.exit_code == 0:
        _check_printable(result.stdout)
        if arguments[0] == "inspect":
            json.loads(result.stdout)
        return "read"
    if result.exit_code != 2:
        raise Wrong(f"{arguments[0]}: exit code {result.exit_code}: {result.output}")
    _check_sentence(result.stderr)
    return "refused"


def _check_sentence(text: str) -> None:
    lines = text.splitlines()
    if len(lines) != 1 or not lines[0].strip() or len(lines[0]) > LONGEST:
        raise Wrong(f"{len(lines)} lines, {len(text)} characters: {text[:300]}")
    _check_printable(text)


def _check_printable(text: str) -> None:
    hidden = {character for character in text if unicodedata.category(character) in ("Cc", "Cf")} - {"\n"}
    if hidden:
        raise Wrong(f"raw control characters {hidden}: {text[:300]!r}")

"""`gqa verify --against`: a checkpoint in our code beside the same in another's, on a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from gqa.backends import backend_name
from gqa.errors import did_you_mean
from gqa.lines import Indented, plain
from gqa.outputs import STDOUT, list_written, write_json
from gqa.progress import bars
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.families import FAMILIES, read_config
from gqa_weights.families.read import detect
from gqa_weights.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from conformance.trace.foreign import Apart, LogitsApart, Passed
    from gqa_spec import ModelConfig
    from gqa_weights.families.tensors import TensorNames

TRANSFORMERS = "transformers"
MOST_TOKENS = 512
ROWS = 12  # of a table: more blocks than that are shown around the first that differs


@dataclass(frozen=True)
class Found:
    """places: what both show, in the order of the computation. stage: the first inside the first block that differs."""

    places: list[Apart]
    logits: LogitsApart
    stage: Apart | None
    notes: tuple[str, ...]

    @property
    def first(self) -> Apart | None:
        return next((place for place in self.places if not place.same), None)


@dataclass(frozen=True)
class Wanted:
    path: Path
    code: str
    backend: str
    dtype: str


def against_code(path: Path, code: str, text: Path | None, backends: list[str], dtype: str, json: Path | None) -> bool:
    """Print the first place at which the two differ; whether they are equal.

    Raises:
        ValueError: For bad input.
    """
    if code != TRANSFORMERS and ":" not in code.strip(":"):
        nearest = did_you_mean(code, [TRANSFORMERS])
        raise ValueError(f"--against: expected transformers or MODULE:NAME, got {code!r}{nearest}")
    if len(backends) > 1:
        raise ValueError(f"--backend: expected one with --against, got {len(backends)}")
    wanted = Wanted(path, code, backend_name(backends[0] if backends else None), dtype)
    with bars() as progress:
        progress.add_task(f"{path.name} in both", total=None)
        tokens, found = _found(wanted, text)
    if json != STDOUT:
        _print(wanted, tokens, found)
    if json is not None:
        write_json(json, _as_json(wanted, tokens, found))
    list_written(json)
    return found.first is None


def _found(wanted: Wanted, text: Path | None) -> tuple[np.ndarray, Found]:
    from conformance.trace import foreign

    checkpoint = open_checkpoint(wanted.path)
    config = read_config(checkpoint)
    tokens, notes = _tokens(wanted, text, config)
    if wanted.code != TRANSFORMERS:
        function = foreign.find_function(wanted.code)
        ours = foreign.our_pass(wanted.path, tokens, wanted.dtype, wanted.backend)
        theirs = foreign.their_pass(function, tokens)
        return tokens, _compared(wanted, ours, theirs, None, notes)
    name = detect(checkpoint)
    names = FAMILIES[FAMILIES[name].origin or name].tensors
    model = foreign.transformers_model(wanted.path, wanted.dtype, "--against transformers")
    ours = foreign.our_pass(wanted.path, tokens, wanted.dtype, wanted.backend)
    theirs = foreign.transformers_pass(model, tokens, names.block)
    found = _compared(wanted, ours, theirs, None, notes)
    stage = _stage(wanted, model, tokens, names, found.first)
    return tokens, _compared(wanted, ours, theirs, stage, notes)


def _compared(wanted: Wanted, ours: Passed, theirs: Passed, stage: Apart | None, notes: tuple[str, ...]) -> Found:
    from conformance.trace.foreign import compare_logits, compare_passes

    if ours.logits.shape != theirs.logits.shape:
        raise ValueError(f"--against: expected logits {ours.logits.shape}, got {theirs.logits.shape}")
    places = compare_passes(ours, theirs, wanted.dtype)
    return Found(places, compare_logits(ours.logits, theirs.logits), stage, notes)


def _stage(wanted: Wanted, model: Any, tokens: np.ndarray, names: TensorNames, first: Apart | None) -> Apart | None:
    """Inside the first block that differs: in gqa_torch, whichever backend ran the whole model."""
    if first is None or not first.place.startswith("block "):
        return None
    import torch

    from conformance.trace.inside import first_stage
    from gqa_torch import Transformer

    ours = Transformer.from_checkpoint(wanted.path, getattr(torch, wanted.dtype))
    return first_stage(ours, model, tokens, int(first.place.removeprefix("block ")), names, wanted.dtype)


def _tokens(wanted: Wanted, text: Path | None, config: ModelConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """The text in tokens; without a tokenizer, random ones, where no text was given. And what to say of it."""
    from conformance.trace.foreign import RANDOM_TOKENS, TEXT

    words = TEXT if text is None else text.read_text(encoding="utf-8")
    try:
        tokens = read_tokenizer(open_checkpoint(wanted.path)).encode(words)
    except CheckpointError:
        if text is not None or config.vocab_size is None:
            raise
        count = min(RANDOM_TOKENS, config.max_length or RANDOM_TOKENS)
        drawn = np.random.default_rng(0).integers(config.vocab_size, size=(1, count))
        return drawn, ("there is no tokenizer: the tokens are random",)
    notes = []
    if wanted.code == TRANSFORMERS:
        notes += _tokenized_apart(wanted.path, words, tokens)
    most = min(MOST_TOKENS, config.max_length or MOST_TOKENS)
    if len(tokens) > most:
        notes.append(f"of the text's {len(tokens):,} tokens the first {most} are read")
    if not tokens:
        raise ValueError(f"--text: {text} holds no token")
    return np.array([tokens[:most]], np.int64), tuple(notes)


def _tokenized_apart(path: Path, words: str, tokens: list[int]) -> list[str]:
    from conformance.trace.foreign import transformers_tokens

    try:
        others = list(transformers_tokens(path, words))
    except ValueError as error:
        return [str(error)]
    if others == tokens:
        return []
    place = next(
        (i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), min(len(tokens), len(others))
    )
    return [f"transformers makes other tokens of the text, from token {place} on; both models read ours"]


# --- the screen ------------------------------------------------------------------------------------------------------


def _print(wanted: Wanted, tokens: np.ndarray, found: Found) -> None:
    console = Console(highlight=False)
    first = found.first
    word, rest = ("EQUAL", _worst(found)) if first is None else ("DIFFERS", _difference(first, found.stage))
    verdict = plain(f"{word}  {rest}")
    verdict.stylize("bold green" if first is None else "bold red", 0, len(word))
    console.print(verdict)
    console.print(plain(f"A {wanted.path} in gqa_{wanted.backend}, {wanted.dtype}, {tokens.shape[1]} tokens"))
    console.print(plain(f"B the same in {wanted.code}"))
    for note in found.notes:
        console.print(Indented(note))
    console.print(_table(found))
    apart = found.logits
    console.print(plain(f"KL of the logits: at most {apart.largest_kl:.2g} nats, mean {apart.mean_kl:.2g}"))
    console.print(plain(f"the same tokens: top-1 {apart.top_1:.2%}, top-5 {apart.top_5:.2%}"))


def _worst(found: Found) -> str:
    worst = max(found.places, key=lambda place: place.error)
    blocks = sum(place.place.startswith("block ") for place in found.places)
    shown = f"{blocks} blocks and the logits" if blocks else "the logits"
    return f"{shown} at most {worst.error:.2g} of the largest value apart"


def _difference(first: Apart, stage: Apart | None) -> str:
    if stage is None:
        return f"first difference: {first.place}, {first.error:.2g} of the largest value"
    return f"first difference: {first.place}, {stage.place}, {stage.error:.2g} of the largest value"


def _table(found: Found) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="least cosine of a token")
    table.add_column("after")
    for name in ("error", "allowed", "cosine"):
        table.add_column(name, justify="right")
    for row in _shown(found.places):
        if row is None:
            table.add_row("...", "", "", "")
        else:
            numbers = f"{row.error:.2g}", f"{row.allowed:g}", f"{row.cosine:.6f}"
            table.add_row(row.place, *numbers, style="" if row.same else "red")
    return table


def _shown(places: list[Apart]) -> list[Apart | None]:
    """All, or of many those around the first that differs, and the ends."""
    if len(places) <= ROWS:
        return [*places]
    first = next((i for i, place in enumerate(places) if not place.same), len(places) - 2)
    kept = {0, 1, len(places) - 2, len(places) - 1, *range(first - 2, first + 3)}
    rows: list[Apart | None] = []
    for number, place in enumerate(places):
        if number in kept:
            rows.append(place)
        elif rows[-1] is not None:
            rows.append(None)
    return rows


def _as_json(wanted: Wanted, tokens: np.ndarray, found: Found) -> dict[str, Any]:
    first = found.first
    return {
        "equal": first is None,
        "path": str(wanted.path),
        "against": wanted.code,
        "backend": wanted.backend,
        "dtype": wanted.dtype,
        "tokens": int(tokens.shape[1]),
        "notes": list(found.notes),
        "first_difference": None
        if first is None
        else {"place": first.place, "stage": found.stage.place if found.stage else None},
        "places": [_row(place) for place in found.places],
        "stage": _row(found.stage) if found.stage else None,
        "logits": {name: x if isfinite(x) else None for name, x in asdict(found.logits).items()},
    }


def _row(place: Apart) -> dict[str, Any]:
    return {**asdict(place), "error": place.error if isfinite(place.error) else None, "same": place.same}

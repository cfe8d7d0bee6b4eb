"""A whole model beside another implementation's code: hidden states after each block, then logits, on one text.

The other side is transformers' own code for the folder, or a function of the user's. Nothing of ours runs in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from conformance.targets import Backend
from conformance.trace.models import precision

Array = np.ndarray

# Relative to the largest value of a state. transformers computes RoPE, norms and softmax in float32 in every dtype.
ALLOWED = {"float64": 2e-5, "float32": 1e-4}
# What models read where no text is given, and how many random tokens those without a tokenizer.
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness "
    "was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there "
    "be light: and there was light."
)
RANDOM_TOKENS = 64
TOP = 5


@dataclass(frozen=True)
class Passed:
    """logits (B, T, V). states: (B, T, D) after the embedding and after each block, as far as the code shows them."""

    logits: Array
    states: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Apart:
    """Two arrays of one place. error: relative to the largest value of the other side. cosine: the least of a token."""

    place: str
    error: float
    cosine: float
    allowed: float

    @property
    def same(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class LogitsApart:
    """kl: from the other side's distribution to ours, in nats. top_1, top_5: the share of tokens that both have."""

    largest_kl: float
    mean_kl: float
    top_1: float
    top_5: float


def compare(place: str, ours: Array, theirs: Array, dtype: str) -> Apart:
    """Two states or logits. Of other shapes, or where one is not finite, the error is infinite."""
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Apart(place, np.inf, 0.0, ALLOWED[dtype])
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = float(((a * b).sum(axis=-1) / np.where(norms == 0, 1, norms)).min())
    return Apart(place, float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)), cosine, ALLOWED[dtype])


def compare_logits(ours: Array, theirs: Array) -> LogitsApart:
    """What both sides would say next, after each token."""
    p, q = _log_softmax(theirs), _log_softmax(ours)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    count = min(TOP, p.shape[-1])
    best = [np.argsort(-x, axis=-1, kind="stable")[..., :count] for x in (p, q)]
    shared = (best[0][..., :, None] == best[1][..., None, :]).any(axis=-1).mean()
    return LogitsApart(
        float(max(kl.max(), 0.0)),
        float(max(kl.mean(), 0.0)),
        float((best[0][..., 0] == best[1][..., 0]).mean()),
        float(shared),
    )


def _log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


def compare_passes(ours: Passed, theirs: Passed, dtype: str) -> list[Apart]:
    """Every place that both show, in the order of the computation; the logits last.

    Raises:
        ValueError: Where the other side shows states of another number than the model has.
    """
    if theirs.states and len(theirs.states) != len(ours.states):
        raise ValueError(
            f"--against: expected {len(ours.states)} hidden states, after the embedding and after each block, "
            f"got {len(theirs.states)}"
        )
    places = ["embedding", *(f"block {number}" for number in range(len(ours.states) - 1))]
    pairs = zip(places, ours.states, theirs.states, strict=False)
    states = [compare(place, a, b, dtype) for place, a, b in pairs]
    return [*states, compare("logits", ours.logits, theirs.logits, dtype)]


# --- our side --------------------------------------------------------------------------------------------------------


def our_pass(path: Path, tokens: Array, dtype: str, backend: str) -> Passed:
    """The model of a checkpoint, run in a backend."""
    found = Backend(backend)
    with precision(backend, dtype):
        kind = getattr(import_module("torch"), dtype) if backend == "torch" else dtype
        model = found.module.Transformer.from_checkpoint(path, kind)
        call = found.framework.apply if backend == "torch" else _call
        logits, states = call(model, found.framework.to(tokens), hidden_states=True)
        back = found.framework.back
        return Passed(back(logits), tuple(back(x) for x in states))


def _call(function: Any, *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, **keywords)


# --- a function of the user's ----------------------------------------------------------------------------------------


def find_function(name: str) -> Callable[[Array], Any]:
    """MODULE:NAME, from the working directory or installed.

    Raises:
        ValueError: Where there is no such function.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--against: {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"--against: expected a function of tokens (B, T), got {name}, a {type(found).__name__}")
    function: Callable[[Array], Any] = found
    return function


def their_pass(function: Callable[[Array], Any], tokens: Array) -> Passed:
    """What a function of tokens (B, T) returns: logits, or a pair of logits and states, or both by these names.

    Raises:
        ValueError: For anything else.
    """
    try:
        found = function(tokens)
    except Exception as error:
        raise ValueError(f"--against: the function raised {type(error).__name__}: {error}") from error
    if isinstance(found, Mapping):
        logits, states = found.get("logits"), found.get("hidden_states") or ()
    elif isinstance(found, tuple | list) and len(found) == 2:
        logits, states = found
    else:
        logits, states = getattr(found, "logits", found), getattr(found, "hidden_states", None) or ()
    array = None if logits is None else _array(logits)
    if array is None or array.ndim != 3 or array.shape[:2] != tokens.shape:
        got = "none" if array is None else f"shape {array.shape}"
        raise ValueError(f"--against: expected logits (B, T, V) = {(*tokens.shape, 'V')}, got {got}")
    return Passed(array, tuple(_array(state) for state in states))


def _array(x: Any) -> Array:
    """NumPy's array of what a framework calls an array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if x.dtype.itemsize < 4 else x
    return np.asarray(x)


# --- transformers ----------------------------------------------------------------------------------------------------


def transformers_model(path: Path, dtype: str, option: str, *, own_class: bool = False) -> Any:
    """The model of a folder, or of a GGUF file, by transformers' own code, with eager attention.

    own_class: by the class that its config names, such as an encoder's, instead of as a causal decoder.

    Raises:
        ValueError: Where transformers cannot read it; it names the option.
    """
    import torch
    import transformers

    from gqa_torch.integrations import transformers as integration

    integration.register()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place, file = _place(path)
    try:
        kind: Any = transformers.AutoModelForCausalLM
        if own_class:
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, **file)
            kind = getattr(transformers, (config.architectures or [""])[0], kind)
        model = kind.from_pretrained(
            place, local_files_only=True, dtype=getattr(torch, dtype), attn_implementation="eager", **file
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{option}: transformers cannot read {path}: {error}") from error
    return model.eval()


def transformers_tokens(path: Path, text: str) -> Sequence[int]:
    """The text in tokens, by transformers' own code.

    Raises:
        ValueError: Without a tokenizer.
    """
    from transformers import AutoTokenizer

    place, file = _place(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, **file)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"--text: {path} has no tokenizer that transformers can read") from error
    tokens: Sequence[int] = tokenizer(text)["input_ids"]
    return tokens


def _place(path: Path) -> tuple[str, dict[str, str]]:
    return (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (str(path), {})


def transformers_pass(model: Any, tokens: Array, block: str) -> Passed:
    """block: how the family names block {}. States are taken where a block returns them, before the last norm."""
    import torch

    from conformance.trace.inside import captured

    names = [block.format(number).removesuffix(".") for number in range(model.config.num_hidden_layers)]
    with torch.no_grad(), captured(model, names) as found:
        result = model(torch.from_numpy(tokens), output_hidden_states=True)
    states = [result.hidden_states[0], *(found[name].output for name in names)]
    return Passed(_array(result.logits), tuple(map(_array, states)))

"""`gqa generate`: a checkpoint continues a prompt."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gqa.errors import one_sentence
from gqa.options import Backend

if TYPE_CHECKING:
    from gqa_spec.generation import Sampling
    from gqa_weights.checkpoint import Checkpoint
    from gqa_weights.tokenizer import Tokenizer

Dtype = Literal["float32", "float16", "bfloat16", "float64"]


def generate(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder or a GGUF file.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    backend: Backend = None,
    dtype: Annotated[Dtype, typer.Option(help="What it computes in.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many, at the latest.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the fewest that reach this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same text again, with any backend.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message; the answer follows, by the chat template.")
    ] = False,
) -> None:
    """Continue a prompt with the checkpoint's own tokenizer, and say how fast. Exit code 2 for bad input.

    It stops where the model ends its text, by the ids in generation_config.json, else in config.json.
    """
    with one_sentence():
        from gqa.backends import backend_name
        from gqa_spec import checks
        from gqa_spec.generation import Sampling

        checks.integer("max_new_tokens", max_new_tokens, at_least=1)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        from gqa_weights.hub import local

        _continue(local(path), prompt, backend_name(backend), dtype, max_new_tokens, sampling, seed, chat)


def _continue(
    path: Path,
    prompt: str,
    backend: str,
    dtype: Dtype,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None,
    chat: bool,
) -> None:
    import numpy as np

    from gqa.progress import bars
    from gqa_spec import checks
    from gqa_weights.checkpoint import open_checkpoint
    from gqa_weights.families import read_config
    from gqa_weights.tokenizer import read_tokenizer

    transformer = import_module(f"gqa_{backend}").Transformer
    checkpoint = open_checkpoint(path)
    tokenizer = read_tokenizer(checkpoint)
    tokens = tokenizer.encode(_read(checkpoint, prompt, chat), special=not chat) if prompt or chat else []
    checks.prompts([tokens], read_config(checkpoint), max_new_tokens)
    with bars() as progress:
        progress.add_task(f"reading {path.name}", total=None)
        model = transformer.from_checkpoint(checkpoint, _dtype(backend, dtype))
    typer.echo("" if chat else prompt, nl=False)
    printer = _Printer(tokenizer)
    model.generate(
        [tokens],
        max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop_tokens=tokenizer.stop_tokens,
        uniforms=np.random.default_rng(seed).random((1, max_new_tokens)),
        callback=printer,
    )
    typer.echo(f"\n{printer.summary(len(tokens), backend)}", err=True)


def _read(checkpoint: Checkpoint, prompt: str, chat: bool) -> str:
    from gqa_weights.chat import chat_prompt

    return chat_prompt(checkpoint, prompt) if chat else prompt


class _Printer:
    """Prints each token as it comes, and keeps the time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from gqa_weights.checkpoint.printable import printable

        self._text = tokenizer.stream()
        self._printable = partial(printable, keep="\n\t\u200c\u200d")  # lines, and the joiners of scripts and emoji
        self._times = [perf_counter()]

    def __call__(self, tokens: list[int | None]) -> None:
        self._times.append(perf_counter())
        for token in tokens:
            typer.echo("" if token is None else self._printable(self._text(token)), nl=False)

    def summary(self, prompt_tokens: int, backend: str) -> str:
        """The median step, since the first ones may compile."""
        steps = [later - earlier for earlier, later in pairwise(self._times)]
        first = f"{prompt_tokens} tokens read in {steps[0]:.2f} s"
        if len(steps) == 1:
            return f"gqa_{backend}: {first}, 1 written"
        return f"gqa_{backend}: {first}, {len(steps)} written at {1 / median(steps[1:]):.1f} tokens per second"


def _dtype(backend: str, dtype: Dtype) -> Any:
    return getattr(import_module("torch"), dtype) if backend == "torch" else dtype

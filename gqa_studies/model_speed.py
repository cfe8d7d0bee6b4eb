"""A whole model at work: tokens per second of each backend and of transformers, beside what bandwidth allows, and
how long a first load takes. `python -m gqa_studies.model_speed CONTENDER PATH` is one such load."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gqa_spec import ModelConfig
from gqa_spec.sizes import model_kv_cache_bytes
from gqa_studies.machine import Limits, installed
from gqa_studies.timing import paired

PROMPT, TOKENS = tuple(range(1000, 1016)), 8  # the time does not depend on which tokens these are
SPINNING = 0.15  # seconds; OpenBLAS's threads spin for 0.12 after a call, on a core that the other contender may want
BANDWIDTH, TRANSFORMERS = "read bandwidth", "transformers"
FLOAT32 = 4
NEEDS = {
    "gqa_torch": ("torch",),
    "gqa_jax": ("jax", "flax"),
    "gqa_numpy": (),
    TRANSFORMERS: ("transformers", "torch"),
    BANDWIDTH: ("torch",),
}
Decode = Callable[[int], tuple[list[int], list[float]]]  # how many tokens -> the tokens, and when each was there


class DifferentText(Exception):
    """A contender continues the prompt otherwise than we do, so its time says nothing."""


@dataclass(frozen=True)
class Row:
    ours: str
    contender: str
    target: float | None

    @property
    def text(self) -> str:
        return f"{self.ours} vs {self.contender}"


ROWS = (
    Row("gqa_torch", TRANSFORMERS, 1.4),
    Row("gqa_torch", BANDWIDTH, 0.65),
    Row("gqa_jax", TRANSFORMERS, None),
    Row("gqa_jax", BANDWIDTH, 0.65),
    Row("gqa_numpy", TRANSFORMERS, None),
    Row("gqa_numpy", BANDWIDTH, 0.5),
)
LOAD_LIMIT = 15.0  # seconds


@dataclass(frozen=True)
class Figure:
    """ratio: the median over pairs of their time for a token over ours, low and high its quartiles. Against the
    bandwidth, "theirs" is the speed at which memory could be read, and the ratio our share of it."""

    ours: str
    contender: str
    pairs: int
    our_tokens_per_second: float
    their_tokens_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    target: float | None
    verdict: str


@dataclass(frozen=True)
class Load:
    """A first load, in a process of its own: imports, reading, dequantizing, until the model is there."""

    name: str
    seconds: float
    limit: float | None
    verdict: str


def chosen(only: str | None) -> list[Row]:
    """The rows whose text contains the pattern, `*` and `?` match anything."""
    return [row for row in ROWS if fnmatch(row.text.lower(), f"*{only or ''}*".lower())]


def missing(row: Row) -> list[str]:
    needed = {package: None for name in (row.ours, row.contender) for package in NEEDS[name]}
    return [package for package in needed if not installed(package)]


class Contenders:
    """The models of a checkpoint, each loaded when it is first used, all in float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _config(path)
        self._decoders: dict[str, Decode] = {}

    def decode(self, name: str) -> Decode:
        if name not in self._decoders:
            self._decoders[name] = _decoder(name, load(name, self.path))
        return self._decoders[name]

    def bytes_per_token(self) -> float:
        """What decoding must read: every weight once, and the keys and values so far. An embedding that is not tied is
        not read but for one row."""
        config, length = self.config, len(PROMPT) + TOKENS // 2
        embedding = 0 if config.tied else (config.vocab_size or 0) * config.hidden_size
        cache = model_kv_cache_bytes(config, length, bytes_per_element=FLOAT32, rolling=True)
        return FLOAT32 * (config.param_count - embedding) + cache


def measure(row: Row, contenders: Contenders, limits: Limits | None, budget: float) -> Figure:
    """Raises DifferentText before any clock starts if the contender's tokens are not ours."""
    ours = contenders.decode(row.ours)
    if row.contender == BANDWIDTH:
        assert limits is not None
        theirs: Callable[[], float] = partial(limits.seconds_to_read, contenders.bytes_per_token())
    else:
        theirs = partial(_seconds_per_token, contenders.decode(row.contender))
        found, expected = (contenders.decode(name)(TOKENS)[0] for name in (row.contender, row.ours))
        if found != expected:
            raise DifferentText(f"continues with {found}, ours with {expected}")
    pairs = paired(partial(_seconds_per_token, ours), theirs, budget, SPINNING)
    our_rate, their_rate = (_median_rate(times) for times in (pairs.ours, pairs.theirs))
    ratio = pairs.ratio()
    verdict = "" if row.target is None else "reached" if ratio >= row.target else "missed"
    return Figure(
        row.ours,
        row.contender,
        len(pairs.ours),
        our_rate,
        their_rate,
        ratio,
        pairs.ratio(0.25),
        pairs.ratio(0.75),
        row.target,
        verdict,
    )


def measure_load(name: str, path: Path) -> Load:
    command = [sys.executable, "-m", "gqa_studies.model_speed", name, str(path)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds = float(found.stdout.splitlines()[-1])
    if name == TRANSFORMERS:
        return Load(name, seconds, None, "")
    return Load(name, seconds, LOAD_LIMIT, "reached" if seconds < LOAD_LIMIT else "missed")


def load(name: str, path: Path) -> Any:
    """Our backend's Transformer, or transformers' model for the same file, in float32."""
    if name == TRANSFORMERS:
        return _transformers_gguf(path) if path.suffix == ".gguf" else _transformers_folder(path)
    backend = import_module(name)
    dtype = {"gqa_torch": "torch", "gqa_jax": "jax.numpy", "gqa_numpy": "numpy"}[name]
    return backend.Transformer.from_checkpoint(path, dtype=import_module(dtype).float32)


def _seconds_per_token(decode: Decode) -> float:
    """Over the tokens after the first, which waits for the prompt."""
    times = decode(TOKENS + 1)[1]
    return (times[-1] - times[0]) / TOKENS


def _median_rate(times: tuple[float, ...]) -> float:
    return 1 / sorted(times)[len(times) // 2]


def _decoder(name: str, model: Any) -> Decode:
    if name == TRANSFORMERS:
        return partial(_decode_transformers, model)

    def decode(count: int) -> tuple[list[int], list[float]]:
        times: list[float] = []
        (tokens,) = model.generate([PROMPT], count, callback=lambda _: times.append(time.perf_counter()))
        return tokens, times

    return decode


def _decode_transformers(model: Any, count: int) -> tuple[list[int], list[float]]:
    import torch

    times: list[float] = []

    class Clock:
        def put(self, _: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None: ...

    prompt = torch.tensor([PROMPT])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, streamer=Clock()
    )
    return tokens[0, len(PROMPT) :].tolist(), times[1:]  # the first is the prompt


def _transformers_folder(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with redirect_stderr(io.StringIO()):  # its progress bar would write into ours
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return _never_ending(model)


def _transformers_gguf(path: Path) -> Any:
    """By transformers' own reader. `from_pretrained` would do the same, but needs accelerate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read_gguf: Any = load_gguf_checkpoint
    settings = LlamaConfig.from_dict(read_gguf(str(path))["config"])
    with torch.device("meta"):
        names_only = LlamaForCausalLM(settings)
    with redirect_stderr(io.StringIO()):
        read = read_gguf(str(path), return_tensors=True, model_to_load=names_only)
    model: Any = LlamaForCausalLM(settings)
    model.load_state_dict(read["tensors"], strict=False)  # a tied head has no tensor of its own
    model.tie_weights()
    return _never_ending(model.eval())


def _never_ending(model: Any) -> Any:
    """No token ends the text, as none does in ours."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _config(path: Path) -> ModelConfig:
    from gqa_weights.checkpoint import open_checkpoint
    from gqa_weights.families import read_model

    return read_model(open_checkpoint(path)).config


def main(name: str, path: str) -> None:
    start = time.perf_counter()
    load(name, Path(path))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Text from logits: which token is chosen, when a row ends, how long a cache must be. SPEC 19.

It is computed on the host, in NumPy's float64 whatever the model computes in, and so once for all backends: with the
same uniforms they sample the same text. Each backend passes its model as a `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gqa_spec import ModelConfig, checks

Array = np.ndarray
Step = Callable[[Int[Array, "B T"], Int[Array, "B"]], Array]
Callback = Callable[[list[int | None]], None]
SHORTEST_BUCKET = 16


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0: the likeliest token. Else temperature, top_k and top_p are applied in this order."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        checks.number("temperature", self.temperature, at_least=0)
        if self.top_k is not None:
            checks.integer("top_k", self.top_k, at_least=1)
        if self.top_p is not None:
            checks.top_p(self.top_p)


def choose(logits: Float[Array, "V"], sampling: Sampling, uniform: float) -> int:
    """One token. Candidates are ordered by falling logit, equal ones by token id; `uniform` in [0, 1) picks the first
    whose cumulative probability exceeds it.
    """
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    ordered = logits[order].astype(np.float64)
    weights = np.exp((ordered - ordered[0]) / sampling.temperature)
    cumulative = np.cumsum(weights)
    if sampling.top_p is not None:  # the fewest that reach top_p together
        kept = int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1
        cumulative = cumulative[:kept]
    return int(order[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])


def bucket(length: int, limit: int | None) -> int:
    """The next power of two, so that one compiled step is for many lengths; never more than the model's context."""
    power = max(1 << (length - 1).bit_length(), SHORTEST_BUCKET)
    return power if limit is None else min(power, max(limit, length))


@dataclass(frozen=True)
class Request:
    """Prompts to continue, checked against a model's config."""

    config: ModelConfig
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: Collection[int]
    uniforms: Array

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        prompts: Any,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        stop_tokens: Collection[int],
        uniforms: Any,
        *,
        seed: int | None = None,
        held: Sequence[int] | None = None,
    ) -> Request:
        """Raises ValueError and TypeError for whatever is wrong (SPEC 14).

        prompts: lists, arrays, or one array (B, T). uniforms are drawn where None, from the seed if there is one. held:
        how many tokens each row of a given cache has.
        """
        checks.integer("max_new_tokens", max_new_tokens, at_least=1)
        prompts = _lists(prompts)
        checks.prompts(prompts, config, max_new_tokens, held)
        checks.seed(seed, uniforms)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        shape = (len(prompts), max_new_tokens)
        drawn = np.random.default_rng(seed).random(shape) if uniforms is None else np.asarray(uniforms, np.float64)
        checks.uniforms(drawn, *shape)
        return cls(config, prompts, max_new_tokens, sampling, frozenset(stop_tokens), drawn)

    @property
    def batch_size(self) -> int:
        return len(self.prompts)

    @property
    def most_tokens(self) -> list[int]:
        """How many tokens each row may append to a cache: its prompt, and its new tokens."""
        return [len(prompt) + self.max_new_tokens for prompt in self.prompts]

    @property
    def cache_length(self) -> int:
        """Slots that a cache needs: a bucket, the same in all backends, since RoPE's frequencies may depend on it."""
        return bucket(max(map(len, self.prompts)) + self.max_new_tokens, self.config.max_length)

    def run(
        self, step: Step, callback: Callback | None, *, bucketed: bool = False, complete: bool = False
    ) -> list[list[int]]:
        """Each row's new tokens, its stop token included.

        step: from tokens (B, T) and how many of each row are real to the logits (B, V) after each row's last real
        token; it keeps the cache. callback: called with each step's tokens, None for a row that has ended. bucketed:
        pad the prompts to a bucket, for a step that is compiled for each T. complete: the cache is used again, so that
        it gets every new token, the last one too, and no token after a row's end.
        """
        lengths = np.array([len(prompt) for prompt in self.prompts])
        longest = max(map(len, self.prompts))
        width = bucket(longest, self.config.max_length) if bucketed else longest
        tokens = np.zeros((self.batch_size, width), np.int64)
        for row, prompt in enumerate(self.prompts):
            tokens[row, : len(prompt)] = prompt
        new: list[list[int]] = [[] for _ in self.prompts]
        running = np.ones(self.batch_size, bool)
        for i in range(self.max_new_tokens):
            logits = step(tokens, lengths)
            chosen = [
                choose(logits[b], self.sampling, self.uniforms[b, i]) if running[b] else None for b in range(len(new))
            ]
            for tokens_of_row, token in zip(new, chosen, strict=True):
                tokens_of_row += [] if token is None else [token]
            if callback is not None:
                callback(chosen)
            running &= [token is not None and token not in self.stop_tokens for token in chosen]
            tokens = np.array([[0 if token is None else token] for token in chosen])
            lengths = np.ones_like(lengths)  # ended rows too, since rows of equal lengths are faster
            if complete:
                lengths = np.array([token is not None for token in chosen], lengths.dtype)
            if not running.any():
                break
        if complete:
            step(tokens, lengths)
        return new


def _lists(prompts: Any) -> Any:
    """Arrays as lists; anything else as it is."""
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if not isinstance(prompts, list | tuple):
        return prompts
    return [row.tolist() if hasattr(row, "tolist") else row for row in prompts]

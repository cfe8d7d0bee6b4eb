"""What fewer KV heads cost in quality: small models on real prose, the same but for num_kv_heads, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gqa_studies import text
from gqa_studies.runs import DEFAULT, Runs, Weights
from gqa_studies.timing import seconds
from gqa_studies.training import Recipe, built, initial_weights, nats_per_token, trained

KV_HEADS, SEEDS = (8, 4, 2, 1), (0, 1, 2)
Done = Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """One finished run. worse_than_mha: perplexity against that of the same seed's run with K = N, less 1."""

    num_kv_heads: int
    seed: int
    parameters: int
    training_tokens: int
    training_loss: float
    perplexity: float
    bits_per_byte: float
    worse_than_mha: float | None
    training_seconds: float


def evaluate_perplexity_vs_kv_heads(
    kv_heads: Sequence[int] = KV_HEADS,
    seeds: Sequence[int] = SEEDS,
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    runs: Runs = DEFAULT,
    done: Done = lambda steps: None,
) -> list[Outcome]:
    """Train a model for each of `kv_heads` and `seeds`, or find it finished among `runs`, and measure its perplexity
    per byte on the book held out. Runs of a seed read the same passages in the same order, and start from the same
    numbers where they have the same weights. `done` receives how many steps were made or found."""
    found = [(K, seed, run(runs, K, seed, recipe, done)) for seed in seeds for K in kv_heads]
    mha = {seed: result["nats"] for K, seed, result in found if recipe.heads == K}
    outcomes = [_outcome(K, seed, result, mha.get(seed), recipe) for K, seed, result in found]
    return sorted(outcomes, key=lambda each: (-each.num_kv_heads, each.seed))


def run(runs: Runs, num_kv_heads: int, seed: int, recipe: Recipe, done: Done) -> dict[str, Any]:
    """One run's result; its weights are kept where uptraining begins with them, K = N."""
    settings = recipe.settings() | {"num_kv_heads": num_kv_heads, "seed": seed}
    finished = runs.result(_name(num_kv_heads, seed), settings)
    if finished is not None:
        done(recipe.steps)
        return finished
    result, weights = _trained(num_kv_heads, seed, recipe, done)
    runs.finish(_name(num_kv_heads, seed), settings, result, weights if num_kv_heads == recipe.heads else None)
    return result


def mha_weights(runs: Runs, seed: int, recipe: Recipe, done: Done) -> Weights:
    """The weights of a finished run with K = N; it is run first where it is not finished."""
    run(runs, recipe.heads, seed, recipe, done)
    return runs.weights(_name(recipe.heads, seed), recipe.settings() | {"num_kv_heads": recipe.heads, "seed": seed})


def is_finished(runs: Runs, recipe: Recipe, kv_heads: Sequence[int] = KV_HEADS, seeds: Sequence[int] = SEEDS) -> bool:
    return all(
        runs.result(_name(K, seed), recipe.settings() | {"num_kv_heads": K, "seed": seed}) is not None
        for K in kv_heads
        for seed in seeds
    )


def _trained(num_kv_heads: int, seed: int, recipe: Recipe, done: Done) -> tuple[dict[str, Any], Weights]:
    config = recipe.config(num_kv_heads)
    model = built(config, initial_weights(config, seed))
    train, test = text.split()
    batches = text.batches(train, recipe.steps, recipe.batch, recipe.context, seed)
    losses: list[float] = []
    taken = seconds(lambda: losses.extend(trained(model, batches, recipe.rates(), lambda: done(1))))
    result = {
        "parameters": config.param_count,
        "training_loss": statistics.mean(losses[-max(len(losses) // 10, 1) :]),
        "nats": nats_per_token(model, text.passages(test[: recipe.test_bytes], recipe.context)),
        "seconds": taken,
    }
    return result, model.export_weights()


def _outcome(K: int, seed: int, result: dict[str, Any], mha: float | None, recipe: Recipe) -> Outcome:
    nats = result["nats"]
    return Outcome(
        K,
        seed,
        result["parameters"],
        recipe.steps * recipe.batch * recipe.context,
        result["training_loss"],
        math.exp(nats),
        nats / math.log(2),
        None if mha is None else math.expm1(nats - mha),
        result["seconds"],
    )


def _name(num_kv_heads: int, seed: int) -> str:
    return f"perplexity-K{num_kv_heads}-seed{seed}"


@dataclass(frozen=True)
class Summary:
    """The seeds of one K together: means, and the standard deviation of a single run."""

    num_kv_heads: int
    seeds: int
    parameters: int
    perplexity: float
    perplexity_deviation: float | None
    worse_than_mha: float | None
    worse_than_mha_deviation: float | None


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    return [
        _summary([each for each in outcomes if each.num_kv_heads == K])
        for K in sorted({each.num_kv_heads for each in outcomes}, reverse=True)
    ]


def _summary(own: Sequence[Outcome]) -> Summary:
    worse = [each.worse_than_mha for each in own if each.worse_than_mha is not None]
    mean, deviation = mean_and_deviation([each.perplexity for each in own])
    worse_mean, worse_deviation = mean_and_deviation(worse) if worse else (None, None)
    return Summary(own[0].num_kv_heads, len(own), own[0].parameters, mean, deviation, worse_mean, worse_deviation)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds; the deviation is that of a single run, None where there is only one."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

"""From MHA to GQA and MQA: pool the KV heads, then train on for a small share of the original steps. Ainslie et al.
2023 (arXiv 2305.13245) in small, on the models of the perplexity study, and on SmolLM2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gqa_spec import ModelConfig
from gqa_studies import perplexity, text
from gqa_studies.perplexity import Done
from gqa_studies.runs import DEFAULT, Runs, Weights
from gqa_studies.training import Recipe, Training, built, nats_per_token
from gqa_weights.heads import pool_kv_heads

Method = Literal["mean", "first", "random"]
METHODS: tuple[Method, ...] = ("mean", "first", "random")
KV_HEADS, SHARES = (2, 1), (0.0, 0.01, 0.02, 0.05, 0.10)
UNPOOLED = "not pooled"  # the model trained on as it is: what the further training alone does
CONSTANT_RATE = 0.3  # of the recipe's highest: in between, since its schedule has ended at a tenth
FRESH_PASSAGES = 1000  # added to the seed, so that uptraining reads other passages than the run did


@dataclass(frozen=True)
class Point:
    """A pooled model after `steps` more steps, which are `share` of the original ones."""

    model: str
    method: str
    num_kv_heads: int
    seed: int
    share: float | None
    steps: int
    perplexity: float


def uptrain(
    kv_heads: Sequence[int] = KV_HEADS,
    seeds: Sequence[int] = perplexity.SEEDS,
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    runs: Runs = DEFAULT,
    done: Done = lambda steps: None,
) -> list[Point]:
    """Every way of pooling, and no pooling, at every share of the recipe's steps. The perplexity study's models with
    K = N come first where they are not finished. `done` receives how many steps were made or found."""
    ways: list[tuple[str, int]] = [(UNPOOLED, recipe.heads), *((method, K) for K in kv_heads for method in METHODS)]
    points = []
    for seed in seeds:
        weights = perplexity.mha_weights(runs, seed, recipe, done)
        for method, K in ways:
            curve = _finished(runs, weights, method, K, seed, recipe, done)
            points += [
                Point("small", method, K, seed, share, step_count(recipe, share), math.exp(nats))
                for share, nats in zip(SHARES, curve, strict=True)
            ]
    return points


def steps_in_all(recipe: Recipe, kv_heads: Sequence[int] = KV_HEADS, seeds: Sequence[int] = perplexity.SEEDS) -> int:
    """The sum of what `done` receives."""
    ways = 1 + len(METHODS) * len(kv_heads)
    return len(seeds) * (recipe.steps + ways * step_count(recipe, SHARES[-1]))


def step_count(recipe: Recipe, share: float) -> int:
    return math.ceil(share * recipe.steps)


def pooled(weights: Weights, config: ModelConfig, num_kv_heads: int, method: Method, seed: int) -> Weights:
    """A whole model's canonical weights with every layer's KV heads pooled."""
    rng, changed = np.random.default_rng(seed), dict(weights)
    for i, layer in enumerate(config.attention):
        prefix = f"blocks.{i}.attention."
        own = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        fewer, _ = pool_kv_heads(own, layer, num_kv_heads, method, rng)
        changed |= {prefix + name: x for name, x in fewer.items()}
    return changed


def _finished(runs: Runs, weights: Weights, method: Any, K: int, seed: int, recipe: Recipe, done: Done) -> list[float]:
    settings = recipe.settings() | {
        "method": method,
        "num_kv_heads": K,
        "seed": seed,
        "shares": SHARES,
        "constant_rate": CONSTANT_RATE,
    }
    name = f"uptraining-K{K}-{method.replace(' ', '-')}-seed{seed}"
    found = runs.result(name, settings)
    if found is None:
        found = {"nats": _curve(weights, method, K, seed, recipe, lambda: done(1))}
        runs.finish(name, settings, found)
    else:
        done(step_count(recipe, SHARES[-1]))
    return found["nats"]


def _curve(weights: Weights, method: Any, K: int, seed: int, recipe: Recipe, done: Callable[[], None]) -> list[float]:
    """Nats per byte on the book held out, at each of the shares."""
    if method != UNPOOLED:
        weights = pooled(weights, recipe.config(recipe.heads), K, method, seed)
    model = built(recipe.config(K), weights)
    train, test = text.split()
    unseen = text.passages(test[: recipe.test_bytes], recipe.context)
    count = step_count(recipe, SHARES[-1])
    batches = text.batches(train, count, recipe.batch, recipe.context, seed + FRESH_PASSAGES)
    training, made, curve = Training(model), 0, []
    for share in SHARES:
        while made < step_count(recipe, share):
            training.step(batches[made], CONSTANT_RATE * recipe.rate)
            made += 1
            done()
        curve.append(nats_per_token(model, unseen))
    return curve


@dataclass(frozen=True)
class Summary:
    """The seeds of one point together: the mean, and the standard deviation of a single run."""

    model: str
    num_kv_heads: int
    method: str
    steps: int
    share: float | None
    perplexity: float
    perplexity_deviation: float | None


def summaries(points: Sequence[Point]) -> list[Summary]:
    def place(point: Point) -> tuple[str, int, str, int, float | None]:
        return point.model, point.num_kv_heads, point.method, point.steps, point.share

    found = []
    for model, K, method, steps, share in dict.fromkeys(place(point) for point in points):
        own = [each.perplexity for each in points if place(each) == (model, K, method, steps, share)]
        mean, deviation = perplexity.mean_and_deviation(own)
        found.append(Summary(model, K, method, steps, share, mean, deviation))
    return found

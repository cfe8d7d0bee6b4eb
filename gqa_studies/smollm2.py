"""A real model pooled: SmolLM2's 3 KV heads to 1, then trained a little further, beside the model as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from conformance.cases.real_data import smollm2_file
from gqa_spec import ModelConfig
from gqa_studies import text
from gqa_studies.perplexity import Done
from gqa_studies.runs import DEFAULT, Runs, Weights
from gqa_studies.training import Training, built, nats_per_token
from gqa_studies.uptraining import METHODS, UNPOOLED, Point, pooled
from gqa_weights.checkpoint import open_checkpoint
from gqa_weights.families import read_model
from gqa_weights.tokenizer import read_tokenizer

Array = np.ndarray
NUM_KV_HEADS = 1


@dataclass(frozen=True)
class Uptraining:
    """AdamW at a constant rate. stops: after how many steps the perplexity is measured, on `passages` of the book held
    out."""

    context: int = 256
    batch: int = 4
    rate: float = 1e-4
    stops: tuple[int, ...] = (0, 4, 8, 16, 32)
    passages: int = 16


QUICK = Uptraining(context=16, batch=1, stops=(0, 1), passages=1)


def uptrain(
    recipe: Uptraining = Uptraining(),
    seed: int = 0,
    *,
    runs: Runs = DEFAULT,
    done: Done = lambda steps: None,
) -> list[Point]:
    """Every way of pooling, and no pooling, at each of the stops; perplexities are per token. `done` receives how many
    steps were made or found."""
    base: list[tuple[ModelConfig, Weights, Array, Array]] = []  # read when the first run is not found

    def read() -> tuple[ModelConfig, Weights, Array, Array]:
        if not base:
            base.append(_read(recipe, seed))
        return base[0]

    points = []
    for method in (UNPOOLED, *METHODS):
        settings = asdict(recipe) | {"method": method, "seed": seed, "num_kv_heads": NUM_KV_HEADS}
        name = f"smollm2-{method.replace(' ', '-')}-seed{seed}"
        found = runs.result(name, settings)
        if found is None:
            found = _curve(*read(), method, recipe, seed, lambda: done(1))
            runs.finish(name, settings, found)
        else:
            done(recipe.stops[-1])
        points += [
            Point("SmolLM2", method, found["num_kv_heads"], seed, None, stop, math.exp(nats))
            for stop, nats in zip(recipe.stops, found["nats"], strict=True)
        ]
    return points


def steps_in_all(recipe: Uptraining) -> int:
    return recipe.stops[-1] * (1 + len(METHODS))


def _read(recipe: Uptraining, seed: int) -> tuple[ModelConfig, Weights, Array, Array]:
    """The model's config and weights, batches to train on and passages to measure on."""
    checkpoint = open_checkpoint(smollm2_file())
    model = read_model(checkpoint)
    tokenizer = read_tokenizer(checkpoint)
    train, test = (np.array(tokenizer.encode(part.tobytes().decode("utf-8"))) for part in text.split())
    batches = text.batches(train, recipe.stops[-1], recipe.batch, recipe.context, seed)
    unseen = text.passages(test, recipe.context)[: recipe.passages]
    return model.config, dict(model.weights), batches, unseen


def _curve(
    config: ModelConfig,
    weights: Weights,
    batches: Array,
    unseen: Array,
    method: Any,
    recipe: Uptraining,
    seed: int,
    done: Callable[[], None],
) -> dict[str, Any]:
    """KV heads, and nats per token on the book held out at each of the stops."""
    if method != UNPOOLED:
        weights = pooled(weights, config, NUM_KV_HEADS, method, seed)
        layers = tuple(replace(layer, num_kv_heads=NUM_KV_HEADS) for layer in config.attention)
        config = replace(config, attention=layers)
    model = built(config, weights)
    training, made, curve = Training(model, weight_decay=0.0), 0, []
    for stop in recipe.stops:
        while made < stop:
            training.step(batches[made], recipe.rate)
            made += 1
            done()
        curve.append(nats_per_token(model, unseen, rows=4))
    return {"num_kv_heads": config.attention[0].num_kv_heads, "nats": curve}

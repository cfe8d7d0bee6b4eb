"""Text, training and finished runs: the training against what it must not change."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

import gqa_numpy
from conformance.cases.real_data import king_james
from gqa_studies import (
    perplexity,
    text,
    training,
)
from gqa_studies.runs import Runs
from tests.studies.helpers import TINY

pytestmark = pytest.mark.no_shape_checks


def test_the_book_held_out_is_not_trained_on():
    train, test = (part.tobytes().decode() for part in text.split())
    assert test.startswith("The former treatise have I made, O Theophilus")
    assert test.rstrip().endswith("with all confidence, no man forbidding him.")
    assert test[:200] not in train
    assert test[-200:] not in train
    assert len(train) + len(test) == len(king_james().text) - 1  # which begins with an empty line


def test_passages_predict_every_token_but_the_first_once():
    tokens = np.arange(41, dtype=np.uint8)
    found = text.passages(tokens, context=8)
    assert found.shape == (5, 9)
    assert found[:, 1:].ravel().tolist() == list(range(1, 41))
    assert found[:, 0].tolist() == [0, 8, 16, 24, 32]


def test_batches_are_consecutive_and_follow_the_seed():
    tokens = np.arange(200, dtype=np.uint8)
    found = text.batches(tokens, 3, 5, 7, seed=1)
    assert found.shape == (3, 5, 8)
    assert (np.diff(found.astype(int), axis=2) == 1).all()
    np.testing.assert_array_equal(found, text.batches(tokens, 3, 5, 7, seed=1))
    assert (found != text.batches(tokens, 3, 5, 7, seed=2)).any()
    assert text.batches(tokens[:8], 40, 1, 7, seed=0).max() == 7  # the last token can be drawn, no more


def test_models_start_alike_but_for_their_kv_heads():
    many, few = (training.initial_weights(TINY.config(K), seed=5) for K in (4, 2))
    for name, x in many.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            np.testing.assert_array_equal(x[: len(x) // 2], few[name])
        else:
            np.testing.assert_array_equal(x, few[name])
    assert (many["blocks.0.attention.q_proj.weight"] != many["blocks.1.attention.q_proj.weight"]).all()
    other = training.initial_weights(TINY.config(4), seed=6)
    assert all((x != other[name]).any() for name, x in many.items() if x.ndim > 1)


def test_perplexity_is_that_of_the_formula():
    """Against gqa_numpy's logits and a softmax written out here; a model of zeros has V."""
    config = TINY.config(2)
    weights = training.initial_weights(config, seed=1)
    weights["embed.weight"] *= 50  # far from uniform
    unseen = text.passages(text.split()[1][:61], TINY.context)
    logits = gqa_numpy.Transformer(config).load_weights(weights).eval()(unseen[:, :-1].astype(np.int64))
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(shares, unseen[:, 1:, None].astype(np.int64), -1)).mean()
    assert expected > 6
    for rows in (2, 32):
        got = training.nats_per_token(training.built(config, weights), unseen, rows)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    nothing = training.built(config, {name: 0 * x for name, x in weights.items()})
    np.testing.assert_allclose(math.exp(training.nats_per_token(nothing, unseen)), 256, rtol=1e-6)


def test_the_rate_rises_then_falls_to_a_tenth():
    rates = training.Recipe(steps=100, rate=2.0).rates()
    np.testing.assert_allclose(rates[:6], [0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    np.testing.assert_allclose(rates[-1], 0.2, rtol=0.02)


def test_training_learns():
    losses, model = [], training.built(TINY.config(2), training.initial_weights(TINY.config(2), 0))
    batch = text.batches(text.split()[0], 1, 3, 12, seed=0)[0]
    optimizer = training.Training(model)
    losses = [optimizer.step(batch, 1e-2) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_finished_run_is_found_only_under_its_own_settings(tmp_path):
    runs = Runs(tmp_path / "runs")
    weights = {"a": np.arange(6.0).reshape(2, 3)}
    assert runs.result("x", {"steps": 1}) is None
    runs.finish("x", {"steps": 1}, {"nats": 2.5}, weights)
    assert Runs(tmp_path / "runs").result("x", {"steps": 1}) == {"nats": 2.5}
    np.testing.assert_array_equal(runs.weights("x", {"steps": 1})["a"], weights["a"])
    assert runs.result("x", {"steps": 2}) is None
    assert runs.result("y", {"steps": 1}) is None


def test_a_run_broken_off_is_none(tmp_path):
    runs = Runs(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        runs.finish("x", {}, {"nats": math.nan})
    assert runs.result("x", {}) is None


class BrokenOff(Exception):
    pass


def test_a_study_broken_off_goes_on_where_it_stopped(tmp_path, monkeypatch):
    runs, real, begun = Runs(tmp_path), perplexity.trained, []

    def counted(*arguments):
        if len(begun) == 3:
            raise BrokenOff
        begun.append(1)
        return real(*arguments)

    monkeypatch.setattr(perplexity, "trained", counted)
    with pytest.raises(BrokenOff):
        perplexity.evaluate_perplexity_vs_kv_heads((4, 2, 1), (0, 1), TINY, runs=runs)
    assert not perplexity.is_finished(runs, TINY, (4, 2, 1), (0, 1))
    assert perplexity.is_finished(runs, TINY, (4, 2, 1), (0,))
    begun[:] = []
    made_or_found = []
    found = perplexity.evaluate_perplexity_vs_kv_heads((4, 2, 1), (0, 1), TINY, runs=runs, done=made_or_found.append)
    assert len(begun) == 3
    assert sum(made_or_found) == 6 * TINY.steps
    begun[:] = [1] * 3
    assert perplexity.evaluate_perplexity_vs_kv_heads((4, 2, 1), (0, 1), TINY, runs=runs) == found

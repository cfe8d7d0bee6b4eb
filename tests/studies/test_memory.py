"""The arithmetic of caches against published numbers and real objects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa_numpy
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.sizes import model_kv_cache_bytes
from gqa_studies import (
    memory,
    plots,
)
from gqa_studies.published_models import PUBLISHED
from tests.studies.helpers import is_png, rows_of, run

pytestmark = pytest.mark.no_shape_checks


def test_the_table_that_is_often_printed_is_the_2_byte_one():
    at_2048 = [row for row in memory.savings([512, 2048]) if row.seq_len == 2048]
    assert [row.variant for row in at_2048] == ["MHA-32", "GQA-8", "GQA-4", "MQA"]
    assert [row.mebibytes_2_bytes for row in at_2048] == [1024, 256, 128, 32]
    assert [row.mebibytes_4_bytes for row in at_2048] == [2048, 512, 256, 64]
    assert [round(100 * row.saved, 1) for row in at_2048] == [0, 75, 87.5, 96.9]


def test_the_figure_of_savings_is_drawn_for_any_lengths(tmp_path):
    figure = plots.plot_memory_savings((512, 3000), tmp_path / "savings.png")
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
    assert model_kv_cache_bytes(attention, length, batch_size=2, bytes_per_element=8, rolling=True) == held


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 40000))
def test_the_longest_context_fits_and_the_next_does_not(windows, budget):
    attention = layers(*windows)
    longest = memory.longest_context(attention, budget)
    if longest is None:
        assert None not in windows
        assert model_kv_cache_bytes(attention, 10**9, rolling=True) <= budget
    else:
        fits, next_one = (model_kv_cache_bytes(attention, longest + more, rolling=True) for more in (0, 1))
        assert fits <= budget < next_one


def test_published_caches():
    """Llama 2: 512 and 320 KiB a token. Mistral 7B: a rolling buffer of 4096 tokens, 512 MiB."""
    per_token = {name: model_kv_cache_bytes(known.attention, 1) / 1024 for name, known in PUBLISHED.items()}
    assert (per_token["Llama-2-7B"], per_token["Llama-2-70B"]) == (512, 320)
    assert model_kv_cache_bytes(PUBLISHED["Mistral-7B"].attention, 10**6, rolling=True) == 512 * 2**20


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
    theirs, attention = getattr(pytest.importorskip("transformers"), kind)(), PUBLISHED[name].attention
    assert len(attention) == theirs.num_hidden_layers
    sizes = (theirs.hidden_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim)
    windows = {"sliding_attention": getattr(theirs, "sliding_window", None), "full_attention": None}
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * len(attention)
    for layer, kind_of_layer in zip(attention, kinds, strict=True):
        assert (layer.embed_dim, layer.num_heads, layer.num_kv_heads, layer.head_dim) == sizes
        assert layer.window == windows[kind_of_layer]


def test_the_gemmas_mix_local_and_global_layers():
    """Gemma 2: every other layer local; Gemma 3: five local, then one global."""
    windows = {name: [layer.window for layer in known.attention] for name, known in PUBLISHED.items()}
    assert windows["Gemma-2-9B"][:4] == [4096, None, 4096, None]
    assert windows["Gemma-3-27B"][:7] == [1024] * 5 + [None, 1024]
    assert windows["Gemma-3-27B"].count(None) == 10


def test_the_memory_command_writes_tables_and_figures(tmp_path):
    result = run("memory", "--model", "mistral-7b", "--model", "Gemma-2-9B", "--gibibytes", 1, "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "memory-models.csv")
    assert [(row["model"], row["longest"]) for row in rows] == [("Mistral-7B", ""), ("Gemma-2-9B", "3120")]
    assert is_png(tmp_path / "memory-models.png")
    assert not (tmp_path / "memory.csv").exists()  # LLaMA-7B's table is not about these models
    assert run("memory", "--folder", tmp_path).exit_code == 0
    assert len(rows_of(tmp_path / "memory.csv")) == 4 * len(memory.LENGTHS)
    assert is_png(tmp_path / "memory.png")


def test_a_model_of_ones_own_with_each_number_of_kv_heads(tmp_path):
    """By hand: 80 layers, head size 128, half a byte a number: 2 * 80 * K * 128 / 2 bytes a token."""
    result = run(
        "memory",
        "--layers",
        80,
        "--num-heads",
        64,
        "--num-kv-heads",
        "64,8,1",
        "--head-dim",
        128,
        "--context",
        1000,
        "--batch",
        3,
        "--bytes",
        0.5,
        "--gibibytes",
        1,
        "--folder",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "memory-choices.csv")
    assert [row["variant"] for row in rows] == ["MHA", "GQA-8", "MQA"]
    per_token = [2 * 80 * K * 128 // 2 for K in (64, 8, 1)]
    assert [float(row["kibibytes_per_token"]) for row in rows] == [x / 1024 for x in per_token]
    assert [int(row["largest_batch"]) for row in rows] == [2**30 // (1000 * x) for x in per_token]
    assert [int(row["longest_context"]) for row in rows] == [2**30 // (3 * x) for x in per_token]
    assert [float(row["saved"]) for row in rows] == [0, 1 - 8 / 64, 1 - 1 / 64]
    assert is_png(tmp_path / "memory-choices.png")


def test_what_if_a_published_model_had_fewer_kv_heads(tmp_path):
    result = run("memory", "--model", "Gemma-3-27B", "--num-kv-heads", "16,1", "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    sixteen, one = rows_of(tmp_path / "memory-choices.csv")
    expected = memory.cache_bytes(PUBLISHED["Gemma-3-27B"].attention, 131072) / 2**30  # windows and all
    assert float(sixteen["gibibytes"]) == expected == 16 * float(one["gibibytes"])


def test_a_checkpoint_is_a_model_too(tiny_checkpoint, tmp_path):
    result = run("memory", "--model", tiny_checkpoint, "--bytes", 4, "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows_of(tmp_path / "memory-models.csv")
    assert float(row["kibibytes_per_token"]) == 2 * 2 * 2 * 16 * 4 / 1024  # keys and values, layers, KV heads, size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "GPT-9"], "--model: expected a checkpoint's path or one of Llama-2-7B, "),
        (["--gibibytes", "0"], "--gibibytes: expected more than 0, got 0"),
        (["--bytes", "-1"], "--bytes: expected more than 0, got -1"),
        (["--num-heads", "6", "--num-kv-heads", "4"], "num_kv_heads: "),
        (["--num-kv-heads", "8;4"], "--num-kv-heads: expected integers with commas between, as 32,8,4,1, got '8;4'"),
        (["--model", "Gemma-7B", "--layers", "3"], "--layers: describes a model of your own, and --model Gemma-7B is"),
        (["--model", "Gemma-7B", "--context", "3"], "--context: applies to a model of your own or to --num-kv-heads"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments, sentence, tmp_path):
    result = run("memory", *arguments, "--folder", tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(sentence)
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())

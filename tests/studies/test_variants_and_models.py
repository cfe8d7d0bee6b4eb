"""Variants of one layer, and whole models: sizes by hand, contenders that must continue alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gqa_spec import AttentionConfig
from gqa_studies import (
    model_speed,
    study_tables,
    variants,
)
from gqa_studies.rows import as_rows
from tests.studies.helpers import one_line, rows_of, run

pytestmark = pytest.mark.no_shape_checks


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
        "model-speed",
        "--checkpoint",
        tiny_checkpoint,
        "--no-loads",
        "--seconds",
        0,
        "--only",
        "numpy",
        "--folder",
        tmp_path,
    )
    assert result.exit_code == 1, result.output
    assert "gqa_numpy vs transformers: another text" in one_line(result)
    assert [row["contender"] for row in rows_of(tmp_path / "model-speed.csv")] == ["read bandwidth"]


def test_a_load_is_timed_in_a_process_of_its_own(tiny_checkpoint):
    load = model_speed.measure_load("gqa_numpy", tiny_checkpoint)
    assert load.seconds > 0
    assert load.verdict == ("reached" if load.seconds < 15 else "missed")
    assert study_tables.table("First load", as_rows([load]), study_tables.LOADS).row_count == 1


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path):
    result = run("model-speed", "--checkpoint", tmp_path / "none.gguf", "--folder", tmp_path)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "none.gguf" in result.output

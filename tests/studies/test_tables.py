"""Every table of the studies fits 80 columns with the longest names and numbers, and cuts none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gqa_studies import memory, memory_choices, memory_peak, model_speed, perplexity, speed, study_tables, uptraining
from gqa_studies.published_models import PUBLISHED
from gqa_studies.rows import as_rows
from gqa_studies.timing import Pairs
from gqa_studies.variants import Variant

pytestmark = pytest.mark.no_shape_checks


def speed_table():
    figures = [speed.figure(row, Pairs((0.123456,) * 3, (12.3456,) * 3), None) for row in speed.rows()]
    return study_tables.speed_table(speed.as_rows(figures))


def peak_table():
    peaks = [memory_peak.Peak(memory_peak.name(*row), 12345.6, 1536, 123.4, "missed") for row in memory_peak.rows(None)]
    return study_tables.memory_peak_table(as_rows(peaks), 8192)


def memory_table():
    at_2048 = as_rows(each for each in memory.savings() if each.seq_len == 32768)
    return study_tables.table("KV cache", at_2048, study_tables.MEMORY, study_tables.MEMORY_CAPTION)


def models_table():
    needs = [memory.need(name, *facts, 64 * 2**30) for name, facts in memory.models(list(PUBLISHED)).items()]
    return study_tables.table("Models", as_rows(needs), study_tables.MEMORY_MODELS, "a caption")


def choices_table():
    layers = memory_choices.layers(126, 128, 128)
    found = memory_choices.choices(layers, [128, 16, 1], context=131072, batch_size=128, memory=141 * 2**30)
    return study_tables.table("Your model", as_rows(found), study_tables.memory_choices(131072, 128))


def perplexity_table():
    row = perplexity.Summary(8, 3, 12_885_888, 14.253, 0.016, -0.0234, 0.0091)
    return study_tables.table("Perplexity", as_rows([row]), study_tables.PERPLEXITY, "a caption")


def uptraining_table():
    rows = [
        uptraining.Summary("SmolLM2", 1, method, stop, 0.1, 3798578.123, 12345.678)
        for method in ("not pooled", "mean", "random")
        for stop in (0, 50, 100, 250, 500)
    ]
    return study_tables.uptraining_table(as_rows(rows))


def variants_table():
    row = Variant("GQA-4", 4, 1_048_576, 2**23, 2**24, 12.826, 1.35, 1.27, 1.45, 14.312, 0.053)
    return study_tables.table("Variants", as_rows([row]), study_tables.VARIANTS, "a caption")


def model_speed_table():
    row = model_speed.Figure("gqa_torch", "read bandwidth", 5, 1234.5, 1234.5, 1.5, 1.4, 1.6, 1.4, "reached instead")
    return study_tables.table("Decoding", as_rows([row]), study_tables.MODEL_SPEED)


def loads_table():
    row = model_speed.Load("transformers", 123.4, 15.0, "reached")
    return study_tables.table("First load", as_rows([row]), study_tables.LOADS)


TABLES = (
    speed_table,
    peak_table,
    memory_table,
    models_table,
    choices_table,
    perplexity_table,
    uptraining_table,
    variants_table,
    model_speed_table,
    loads_table,
)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_a_table_fits_80_columns_and_cuts_nothing(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table())
    printed = console.file.getvalue()
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80

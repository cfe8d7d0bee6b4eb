"""`gqa study memory`: what a KV cache takes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from gqa.common import one_sentence
from gqa.study.options import RESULTS, Folder
from gqa.study.output import publish, refuse
from gqa_studies import memory, study_tables
from gqa_studies.published_models import PUBLISHED
from gqa_studies.rows import as_rows


def memory_study(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A known model or a checkpoint's path; may be given again. All known, if none."),
    ] = None,
    gibibytes: Annotated[
        float, typer.Option(help="How long a context fits this much memory, for the cache alone?")
    ] = 16.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    element: Annotated[int, typer.Option("--bytes", min=1, help="Bytes of a number in the models' caches.")] = 2,
    folder: Folder = RESULTS,
) -> None:
    """What a KV cache takes: LLaMA-7B with fewer KV heads, and the models that people run. Arithmetic alone."""
    console = Console()
    if gibibytes <= 0:
        refuse(f"gibibytes: expected more than 0, got {gibibytes:g}")
    with one_sentence():
        chosen = memory.models(model or list(PUBLISHED))
    needs = [
        memory.need(name, *facts, gibibytes * memory.GIBIBYTE, batch_size=batch_size, element=element)
        for name, facts in chosen.items()
    ]
    savings = memory.savings()
    at_2048 = as_rows(each for each in savings if each.seq_len == 2048)
    console.print(
        study_tables.table("KV cache at LLaMA-7B's size", at_2048, study_tables.MEMORY, study_tables.MEMORY_CAPTION)
    )
    found = as_rows(needs)
    caption = (
        f"(layers with a window), and what a token costs before and after these are full; batch of {batch_size}, "
        f"{element} bytes for a number; fit: into {gibibytes:g} GiB for the cache alone"
    )
    console.print(study_tables.table("Models", found, study_tables.MEMORY_MODELS, caption))
    publish(console, folder, "memory", as_rows(savings), lambda plots: plots.memory_savings(savings))
    publish(console, folder, "memory-models", found, lambda plots: plots.memory_models(needs))

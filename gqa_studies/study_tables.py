"""What a study found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from gqa_studies.memory_peak import H, K, N
from gqa_studies.rows import Rows

Cell = Callable[[Mapping[str, Any]], str]
Columns = Mapping[str, Cell]  # header -> a row's cell
VERDICTS = {"reached": "[green]reached[/]", "reached instead": "[green]reached instead[/]", "missed": "[red]missed[/]"}


def speed_table(rows: Rows) -> Table:
    """Each row in two lines: ours above what it is held against, and each figure above what it is read with."""
    table = _table("Speed", "ratio: median over pairs of theirs / ours, below it the quartiles")
    table.add_column("ours\nagainst", overflow="fold")
    for column in ("our ms\ntheir ms", "ratio\nquartiles", "target\n", "K, V GB/s\nof memory's"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rate, share = row["gigabytes_per_second"], row["share_of_bandwidth"]
        table.add_row(
            f"{row['name']}\n[dim]{row['contender']}[/]",
            f"{row['our_ms']:.3g}\n{row['their_ms']:.3g}",
            f"{row['ratio']:.2f}\n[dim]{row['ratio_low']:.2f}-{row['ratio_high']:.2f}[/]",
            f"{row['target']:g}\n{VERDICTS[row['verdict']]}",
            ("" if rate is None else f"{rate:.1f}") + ("" if share is None else f"\n{share:.0%}"),
        )
    return table


def memory_peak_table(rows: Rows, length: int) -> Table:
    table = _table("Peak memory above the inputs", f"N={N}, K={K}, T=S={length}, H={H}, float32")
    table.add_column("call", overflow="fold")
    for column in ("peak MiB", "limit MiB", "", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        peak, limit = f"{row['peak_mebibytes']:.0f}", f"{row['limit_mebibytes']:.0f}"
        table.add_row(row["name"], peak, limit, VERDICTS[row["verdict"]], f"{row['seconds']:.1f}")
    return table


def _table(title: str, caption: str | None) -> Table:
    """Few lines, so that the numbers fit 80 columns."""
    return Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def table(title: str, rows: Rows, columns: Columns, caption: str | None = None) -> Table:
    """One line for each row; the first column is its name."""
    made = _table(title, caption)
    for number, header in enumerate(columns):
        made.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(cell(row) for cell in columns.values()))
    return made


def field(key: str, form: str = "", none: str = "") -> Cell:
    """A row's value, in Python's format; `none` where it is None."""
    return lambda row: none if row[key] is None else format(row[key], form)


def pair(key: str, form: str) -> Cell:
    """A mean, and the standard deviation of a single run where there are several."""
    return lambda row: "" if row[key] is None else _pair(row, key, form, " ")


def _pair(row: Mapping[str, Any], key: str, form: str, between: str) -> str:
    deviation = row[f"{key}_deviation"]
    return format(row[key], form) + ("" if deviation is None else f"{between}+- {deviation:{form.strip('+')}}")


def uptraining_table(rows: Rows) -> Table:
    """A line for each way of pooling, a column for each number of further steps."""
    made = _table("Perplexity: pooled, then trained further", "+-: the standard deviation of a single run")
    stops = list(dict.fromkeys((row["steps"], row["share"]) for row in rows))
    for header in ("K", "pooling"):
        made.add_column(header, no_wrap=True)
    for steps, share in stops:
        made.add_column(f"{steps} steps" + ("" if share is None else f"\n{share:.0%}"), justify="right", no_wrap=True)
    for kv_heads, method in dict.fromkeys((row["num_kv_heads"], row["method"]) for row in rows):
        own = {
            (row["steps"], row["share"]): _pair(row, "perplexity", ",.0f" if row["perplexity"] >= 1000 else ".3f", "\n")
            for row in rows
            if (row["num_kv_heads"], row["method"]) == (kv_heads, method)
        }
        made.add_row(str(kv_heads), method, *(own[stop] for stop in stops))
    return made


MEMORY: Columns = {
    "LLaMA-7B with": field("variant"),
    "tokens": field("seq_len", ",d"),
    "MiB, 2 bytes": field("mebibytes_2_bytes", ",.0f"),
    "MiB, 4 bytes": field("mebibytes_4_bytes", ",.0f"),
    "saved": field("saved", ".1%"),
}
MEMORY_CAPTION = "the table often printed (1024, 256, 128, 32 MB at 2048 tokens) is the one of 2-byte numbers"
MEMORY_MODELS: Columns = {
    "model": field("model"),
    "layers": lambda row: f"{row['layers']}" + (f" ({row['windowed_layers']})" if row["windowed_layers"] else ""),
    "N/K/H": lambda row: f"{row['num_heads']}/{row['num_kv_heads']}/{row['head_dim']}",
    "KiB per\ntoken": lambda row: (
        f"{row['kibibytes_per_token']:g}"
        + (f", {row['kibibytes_per_token_once_windows_are_full']:g}" if row["windowed_layers"] else "")
    ),
    "its\ncontext": field("max_length", ",d"),
    "MiB\nthere": field("mebibytes_at_max_length", ",.0f"),
    "tokens\nthat fit": field("longest", ",d", none="any"),
}


def memory_choices(context: int, batch_size: int) -> Columns:
    """Columns for one model with each number of KV heads."""
    rows = "1 row" if batch_size == 1 else f"{batch_size} rows"
    return {
        "variant": field("variant"),
        "K": field("num_kv_heads"),
        "KiB per\ntoken": field("kibibytes_per_token", "g"),
        f"GiB of {rows},\n{context:,} tokens": field("gibibytes", ",.3g"),
        "saved": field("saved", ".1%"),
        "rows\nthat fit": field("largest_batch", ",d"),
        "tokens\nthat fit": field("longest_context", ",d", none="any"),
    }


PERPLEXITY: Columns = {
    "K": field("num_kv_heads"),
    "seeds": field("seeds"),
    "parameters": field("parameters", ",d"),
    "perplexity per byte": pair("perplexity", ".4f"),
    "against MHA": pair("worse_than_mha", "+.2%"),
}
VARIANTS: Columns = {
    "layer": field("variant"),
    "weights": field("parameters", ",d"),
    "cache MiB\n2, 4 bytes": lambda row: ", ".join(f"{row[f'cache_bytes_{size}_byte'] / 2**20:.3g}" for size in (2, 4)),
    "ms a\ntoken": field("decode_milliseconds", ".3f"),
    "times\nas fast": lambda row: (
        f"{row['times_as_fast']:.2f}\n{row['times_as_fast_low']:.2f}-{row['times_as_fast_high']:.2f}"
    ),
    "perplexity\nper byte": pair("perplexity", ".4f"),
}
MODEL_SPEED: Columns = {
    "ours": field("ours"),
    "against": field("contender"),
    "our\ntokens/s": field("our_tokens_per_second", ".1f"),
    "their\ntokens/s": field("their_tokens_per_second", ".1f"),
    "ratio\nquartiles": lambda row: f"{row['ratio']:.2f}\n{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
    "target": lambda row: "" if row["target"] is None else f"{row['target']:g}\n{VERDICTS[row['verdict']]}",
}
LOADS: Columns = {
    "first load": field("name"),
    "seconds": field("seconds", ".1f"),
    "limit": lambda row: "" if row["limit"] is None else f"{row['limit']:g} {VERDICTS[row['verdict']]}",
}

"""What a study found, for people (rich tables) and for programs (CSV, JSON)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from studies.memory_peak import H, K, N

Rows = list[dict[str, Any]]
VERDICTS = {"reached": "[green]reached[/]", "reached instead": "[green]reached instead[/]", "missed": "[red]missed[/]"}


def speed_table(rows: Rows) -> Table:
    """Each row in two lines: ours above what it is held against, and each figure above what it is read with."""
    table = Table(title="Speed", caption="ratio: median over pairs of theirs / ours, below it the quartiles")
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
    table = Table(title="Peak memory above the inputs", caption=f"N={N}, K={K}, T=S={length}, H={H}, float32")
    table.add_column("call", overflow="fold")
    for column in ("peak MiB", "limit MiB", "", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        peak, limit = f"{row['peak_mebibytes']:.0f}", f"{row['limit_mebibytes']:.0f}"
        table.add_row(row["name"], peak, limit, VERDICTS[row["verdict"]], f"{row['seconds']:.1f}")
    return table


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, **found: Any) -> None:
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")

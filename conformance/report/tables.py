"""What a run found, for people (rich tables) and for programs (JSON)."""

from __future__ import annotations

import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from conformance.checks.caches import ROW as CACHES
from conformance.checks.check import GRADIENTS, Check
from conformance.dialects.conventions import CONVENTION
from conformance.mutants.run import MutantResult

WIDTH, CELL = 80, 14
CAPTION = "worst error in roundings (eps) of the dtype; (-n): n checks not supported, -: none is"
PACKAGES = ("numpy", "torch", "jax", "flax", "transformers")


def counts(checks: Iterable[Check]) -> dict[str, int]:
    """How many checks passed, failed and were unsupported; what is unsupported is not counted as passed."""
    counted = {"pass": 0, "fail": 0, "unsupported": 0}
    for check in checks:
        counted[check.verdict] += 1
    return counted


def pair(column: str) -> str:
    """Both directions between two backends share a column: "torch to jax, float32" is "jax ~ torch float32"."""
    names, _, dtype = column.rpartition(", ")
    return " ~ ".join(sorted(names.split(" to "))) + f"\n{dtype}"


def matrices(checks: list[Check], title: str) -> Iterator[Table]:
    """Rows: groupings. Columns: pairs, as many to a table as fit 80 columns. Each cell: the worst error, or how many
    checks failed.
    """
    cells: dict[tuple[str, str], list[Check]] = defaultdict(list)
    for check in checks:
        cells[check.row, pair(check.column)].append(check)
    columns = list(dict.fromkeys(pair(check.column) for check in checks))
    widest = max((len(check.row) for check in checks), default=0)
    fit = max((WIDTH - widest - 3) // (max((len(c.partition("\n")[0]) for c in columns), default=CELL) + 2), 1)
    for start in range(0, len(columns), fit):
        shown = columns[start : start + fit]
        table = Table(title=title, caption=CAPTION, box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in shown:
            table.add_column(column, justify="right", no_wrap=True)
        for row in dict.fromkeys(check.row for check in checks):
            if any((row, column) in cells for column in shown):
                table.add_row(row, *(_cell(cells.get((row, column), [])) for column in shown))
        yield table


def _cell(checks: list[Check]) -> str:
    counted = counts(checks)
    worst = max((check.error for check in checks if check.verdict != "unsupported"), default=0.0)
    if counted["fail"]:
        return f"[bold red]{counted['fail']}/{len(checks)} failed[/]"
    if counted["unsupported"] == len(checks):
        return "[yellow]-[/]" if checks else ""
    note = f" [yellow](-{counted['unsupported']})[/]" if counted["unsupported"] else ""
    return f"[green]{worst:.1f}[/]{note}"


def targets(checks: dict[str, list[Check]]) -> Table:
    """What reproduces the failures of each target, each name with the number of checks that it has a part in."""
    table = Table(title="Causes", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("its failures are reproduced by", overflow="fold")
    for name, found in checks.items():
        named = Counter(name for check in found if check.verdict == "fail" for name in causes(check))
        table.add_row(name, Text("\n".join(f"{cause} ({count})" for cause, count in named.most_common())))
    return table


_BETWEEN = rf" \+ (?={'|'.join(map(re.escape, CONVENTION))}: )"  # a choice has a plus of its own: W + 1 keys


def causes(check: Check) -> list[str]:
    """The names in an explanation, or where there is none what kind of failure it is."""
    if check.explanation:
        return re.split(_BETWEEN, check.explanation)
    if check.row == CACHES or check.quantity == GRADIENTS:
        return [CACHES if check.row == CACHES else GRADIENTS]
    return [check.reason.partition(":")[0] if check.reason.startswith("raised") else "nothing named"]


def failures(checks: list[Check]) -> Iterator[Text]:
    """Each failed case once, with what was found and where: quantities and dtypes that failed alike share a line."""
    alike: dict[tuple[str, str], dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for check in checks:
        if check.verdict == "fail":
            name, _, dtype = check.column.rpartition(", ")
            alike[check.case, check.explanation][name, check.reason].append(f"{check.quantity} {dtype}")
    names = {name for found in alike.values() for name, _ in found}
    for (case, explanation), found in alike.items():
        yield Text.assemble((case, "bold"), f"  {explanation}" if explanation else "")
        for (name, reason), places in found.items():
            whose = f"{name}, " if len(names) > 1 else ""
            yield Text(f"  {whose}{', '.join(dict.fromkeys(places))}: {reason}", style="dim")


def as_json(checks: list[Check], results: list[MutantResult], not_run: list[str]) -> dict[str, Any]:
    """Everything that the tables show, and the versions it was run with. An infinite error is written as null."""
    rows = [asdict(check) for check in checks]
    for row in rows:
        row["error"] = row["error"] if row["error"] < float("inf") else None
    return {
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "counts": counts(checks),
        "left_out": not_run,
        "mutants": [asdict(result) for result in results],
        "checks": rows,
    }


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

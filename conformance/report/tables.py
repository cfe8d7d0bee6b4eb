"""What a run found, for people (rich tables) and for programs (JSON)."""

from __future__ import annotations

import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table
from rich.text import Text

from conformance.checks.caches import ROW as CACHES
from conformance.checks.check import GRADIENTS, Check
from conformance.dialects.conventions import CONVENTION
from conformance.mutants.run import MutantResult

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


def matrix(checks: list[Check], title: str) -> Table:
    """Rows: groupings. Columns: pairs. Each cell: the worst error in units of the dtype's epsilon, and the verdict."""
    cells: dict[tuple[str, str], list[Check]] = defaultdict(list)
    for check in checks:
        cells[check.row, pair(check.column)].append(check)
    rows = list(dict.fromkeys(check.row for check in checks))
    columns = list(dict.fromkeys(pair(check.column) for check in checks))
    table = Table(title=title, caption="worst error in units of the dtype's epsilon, relative to the largest value")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row, *(_cell(cells.get((row, column), [])) for column in columns))
    return table


def _cell(checks: list[Check]) -> str:
    counted = counts(checks)
    worst = max((check.error for check in checks if check.verdict != "unsupported"), default=0.0)
    if counted["fail"]:
        return f"[bold red]{worst:.3g} FAIL {counted['fail']}/{len(checks)}[/]"
    if counted["unsupported"] == len(checks):
        return "[yellow]unsupported[/]" if checks else ""
    note = f" [yellow](-{counted['unsupported']})[/]" if counted["unsupported"] else ""
    return f"[green]{worst:.2f} pass[/]{note}"


def targets(checks: dict[str, list[Check]]) -> Table:
    """One row per target: what it passed, and what reproduces the rest, each name with the checks it has a part in."""
    table = Table(title="Targets")
    for name in ("target", "pass", "fail", "unsupported", "its failures are reproduced by"):
        table.add_column(name, overflow="fold")
    for name, found in checks.items():
        counted = counts(found)
        named = Counter(name for check in found if check.verdict == "fail" for name in _causes(check))
        lines = [f"{cause} ({count})" for cause, count in named.most_common()]
        table.add_row(name, *(str(counted[v]) for v in ("pass", "fail", "unsupported")), Text("\n".join(lines)))
    return table


_BETWEEN = rf" \+ (?={'|'.join(map(re.escape, CONVENTION))}: )"  # a choice has a plus of its own: W + 1 keys


def _causes(check: Check) -> list[str]:
    """The names in an explanation, or where there is none what kind of failure it is."""
    if check.explanation:
        return re.split(_BETWEEN, check.explanation)
    if check.row == CACHES or check.quantity == GRADIENTS:
        return [CACHES if check.row == CACHES else GRADIENTS]
    return [check.reason.partition(":")[0] if check.reason.startswith("raised") else "nothing named"]


def failures(checks: list[Check]) -> Table:
    table = Table(title="What failed", show_lines=False)
    for name in ("case", "between", "quantity", "found", "reproduced by"):
        table.add_column(name, overflow="fold")
    for check in checks:
        if check.verdict == "fail":
            table.add_row(check.case, check.column, check.quantity, check.reason, check.explanation)
    return table


def mutant_table(results: list[MutantResult]) -> Table:
    """Planted bugs, and the first case that catches each."""
    table = Table(title="Planted bugs")
    for name in ("family", "bug", "what is wrong", "caught by"):
        table.add_column(name, overflow="fold")
    for result in results:
        first = result.caught_by[0] if result.caught_by else "[bold red]SURVIVED[/]"
        table.add_row(result.family, result.bug, result.what, first)
    return table


def power(
    results: list[MutantResult], elsewhere: Mapping[str, Mapping[str, tuple[str, ...]]], named: Mapping[str, str]
) -> Table:
    """How many cases catch each bug, here and in other projects' tests; elsewhere: suite -> bug -> tests that do;
    named: bug -> what `gqa dialect` calls it.
    """
    table = Table(title="Planted bugs: how many cases catch each", caption="empty: not shown to that suite")
    for name in ("family", "bug", "our cases", *elsewhere):
        table.add_column(name, overflow="fold", justify="left" if name in ("family", "bug") else "right")
    table.add_column("gqa dialect", overflow="fold")
    for result in results:
        others = [_caught(found.get(result.bug)) for found in elsewhere.values()]
        table.add_row(
            result.family,
            result.bug,
            f"{_caught(result.caught_by)} of {result.shown}",
            *others,
            named.get(result.bug, ""),
        )
    for family in dict.fromkeys(result.family for result in results):
        rows = [result for result in results if result.family == family]
        table.add_section()
        table.add_row(
            family, "bugs caught", _share([result.caught_by for result in rows]),
            *(_share([found[result.bug] for result in rows if result.bug in found]) for found in elsewhere.values()),
        )  # fmt: skip
    return table


def case_power(results: list[MutantResult]) -> Table:
    """Which families of cases (the part of a name after the grouping) catch a bug, those first that few others do."""
    table = Table(title="Cases: what they catch, first what few others catch")
    for name in ("cases", "bugs", "caught by them and by few other families of cases"):
        table.add_column(name, overflow="fold")
    caught = {result.bug: {_family_of(case) for case in result.caught_by} for result in results}
    for family in dict.fromkeys(case for cases in caught.values() for case in sorted(cases)):
        bugs = sorted((bug for bug in caught if family in caught[bug]), key=lambda bug: len(caught[bug]))
        table.add_row(family, str(len(bugs)), ", ".join(f"{bug} ({len(caught[bug])})" for bug in bugs[:3]))
    return table


def _family_of(case: str) -> str:
    return case.split(" / ")[-1]


def _caught(tests: tuple[str, ...] | None) -> str:
    return "" if tests is None else str(len(tests)) if tests else "[bold red]0[/]"


def _share(rows: list[tuple[str, ...]]) -> str:
    return f"{sum(map(bool, rows))} of {len(rows)}" if rows else ""


def as_json(checks: list[Check], results: list[MutantResult], not_run: list[str]) -> dict[str, Any]:
    """Everything that the tables show, and the versions it was run with. An infinite error is written as null."""
    rows = [asdict(check) for check in checks]
    for row in rows:
        row["error"] = row["error"] if row["error"] < float("inf") else None
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "counts": counts(checks),
        "left_out": not_run,
        "mutants": [asdict(result) for result in results],
        "checks": rows,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

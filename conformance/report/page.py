"""Checks as one HTML page that needs no network: the matrix of cases by targets, filters, and what failed, drawn."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from math import isfinite
from string import Template
from typing import Any

from conformance.cases.table import FEATURE
from conformance.checks.check import Check
from conformance.report.evidence import Evidence
from conformance.report.picture import Place
from conformance.report.reproduce import command, feature_of
from conformance.report.summary import UNNAMED, cause_counts, expected, in_full
from conformance.report.tables import as_json

DIGITS = 5  # of a number in a picture


def page(
    checks: list[Check], title: str, *, evidence: list[Evidence], not_run: list[str], arrays: str | None = None
) -> str:
    """The whole document. arrays: as given to `gqa conform`, for the commands."""
    templates = files("conformance.report") / "templates"
    data = json.dumps(_data(checks, evidence, not_run, arrays), allow_nan=False, separators=(",", ":"))
    return Template((templates / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=(templates / "page.css").read_text(encoding="utf-8"),
        script=(templates / "page.js").read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c"),  # so that no text of a target's can end the script element
    )


def _data(checks: list[Check], evidence: list[Evidence], not_run: list[str], arrays: str | None) -> dict[str, Any]:
    """causes: what reproduces failures, and the text that finds the cases of each. rows: cases. columns: who, in which
    dtype. checks: row, column, quantity, verdict, error (null: not finite), reason, explanation. commands: by row and
    column. evidence: matrices; what is not finite is text.
    """
    found = as_json(checks, [], not_run)
    rows = {name: i for i, name in enumerate(dict.fromkeys(check.case for check in checks))}
    columns = {name: i for i, name in enumerate(dict.fromkeys(check.column for check in checks))}
    commands: list[list[str]] = [[""] * len(columns) for _ in rows]
    for check in checks:
        commands[rows[check.case]][columns[check.column]] = command(check, arrays)
    of_case = {check.case: check for check in checks}
    failed = [check for check in checks if check.verdict == "fail"]
    return {
        "counts": found["counts"],
        "causes": [
            {
                "name": in_full(cause, failed),
                "search": "" if cause in UNNAMED else cause,
                "count": count,
                "expected": expected(cause),
            }
            for cause, count in cause_counts(failed)
        ],
        "left_out": not_run,
        "versions": _versions(found),
        "rows": [_row(of_case[name]) for name in rows],
        "columns": [dict(zip(("name", "dtype"), name.rsplit(", ", 1), strict=True)) for name in columns],
        "checks": [
            [rows[c.case], columns[c.column], c.quantity, c.verdict, _finite(c.error), c.reason, c.explanation]
            for c in checks
        ],
        "commands": commands,
        "evidence": [{"row": rows[e.case], "column": columns[e.column], **_matrices(e.shown)} for e in evidence],
    }


def _row(check: Check) -> dict[str, Any]:
    name = feature_of(check)
    if name is None:
        return {"case": check.case, "grouping": check.row, "feature": "", "clause": None, "guards": ""}
    feature = FEATURE[name]
    return {
        "case": check.case,
        "grouping": check.row,
        "feature": name,
        "clause": feature.clause,
        "guards": feature.guards,
    }


def _versions(found: dict[str, Any]) -> str:
    stated = [f"{name} {version}" for name, version in found["versions"].items() if version]
    return ", ".join([f"Python {found['python']}", *stated])


def _matrices(shown: Place) -> dict[str, Any]:
    a, b = ([[_told(float(x)) for x in line] for line in matrix] for matrix in (shown.a, shown.b))
    return {"stage": shown.stage, "lead": shown.lead, "axes": shown.axes[-2:], "a": a, "b": b}


def _told(x: float) -> float | str:
    return float(f"{x:.{DIGITS}g}") if isfinite(x) else str(x)


def _finite(x: float) -> float | None:
    return float(f"{x:.4g}") if isfinite(x) else None

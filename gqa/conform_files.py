"""The files that `gqa conform` writes: JSON, JUnit XML and a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from conformance.checks.check import Check
from conformance.mutants.run import MutantResult
from conformance.report import tables
from conformance.report.evidence import Evidence, evidence
from conformance.report.junit import junit
from conformance.report.page import page


@dataclass(frozen=True)
class Reports:
    """Where to write, None for what is not wanted. arrays, limit: as the targets were judged with."""

    json: Path | None
    junit: Path | None
    html: Path | None
    arrays: str | None
    limit: float

    def refuse_early(self) -> None:
        """A folder that does not exist is an error before the run, not after it: one sentence, exit code 2."""
        for name, path in (("--json", self.json), ("--junit", self.junit), ("--html", self.html)):
            if path is not None and not path.absolute().parent.is_dir():
                typer.echo(f"{name}: there is no folder {path.parent}", err=True)
                raise typer.Exit(2)

    def write(
        self, checks: list[Check], results: list[MutantResult], not_run: list[str], title: str, targets: list[str]
    ) -> None:
        """targets: those that were judged; what they gave on failing cases is drawn on the page."""
        if self.json is not None:
            found = tables.as_json(checks, results, not_run)
            self.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        if self.junit is not None:
            self.junit.write_bytes(junit(checks, self.arrays))
        if self.html is not None:
            seen = [drawn for target in targets for drawn in self._evidence(target, checks)]
            text = page(checks, title, evidence=seen, not_run=not_run, arrays=self.arrays)
            self.html.write_text(text, encoding="utf-8")

    def _evidence(self, target: str, checks: list[Check]) -> list[Evidence]:
        own = [check for check in checks if check.column.rpartition(", ")[0] == target]
        return evidence(target, self.arrays, own, self.limit)

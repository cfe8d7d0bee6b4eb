"""The files that `gqa conform` writes: JSON, JUnit XML and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conformance.checks.check import Check
from conformance.checks.judge import Options
from conformance.mutants.run import MutantResult
from conformance.report import tables
from conformance.report.evidence import Evidence, evidence
from conformance.report.junit import junit
from conformance.report.page import page
from gqa.outputs import list_written, write_json


@dataclass(frozen=True)
class Reports:
    """Where to write, None for what is not wanted. options: those that the targets were judged with."""

    json: Path | None
    junit: Path | None
    html: Path | None
    options: Options

    @property
    def arrays(self) -> str | None:
        return self.options.arrays

    def write(
        self, checks: list[Check], results: list[MutantResult], not_run: list[str], title: str, targets: list[str]
    ) -> None:
        """targets: those that were judged; what they gave on failing cases is drawn on the page."""
        if self.json is not None:
            write_json(self.json, tables.as_json(checks, results, not_run))
        if self.junit is not None:
            self.junit.write_bytes(junit(checks, self.arrays))
        if self.html is not None:
            seen = [drawn for target in targets for drawn in self._evidence(target, checks)]
            text = page(checks, title, evidence=seen, not_run=not_run, arrays=self.arrays)
            self.html.write_text(text, encoding="utf-8")
        list_written(self.json, self.junit, self.html)

    def _evidence(self, target: str, checks: list[Check]) -> list[Evidence]:
        own = [check for check in checks if check.column.rpartition(", ")[0] == target]
        return evidence(target, self.options, own)

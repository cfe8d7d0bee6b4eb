"""The rows of a study, and as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def as_rows(found: Iterable[Any]) -> Rows:
    """A row for each of a study's dataclasses."""
    return [asdict(each) for each in found]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)

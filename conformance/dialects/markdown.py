"""The table of public implementations and their conventions, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import date

import numpy as np

from conformance.dialects.conventions import CONVENTIONS
from conformance.dialects.detect import UNDECIDED, Finding
from conformance.dialects.snippets import snippet
from conformance.targets import PUBLIC
from conformance.targets.table import version_of

HEAD = """# Dialects: what public implementations do

Written by `gqa dialect --all --markdown docs/dialects.md`; nothing here was typed in. Each implementation ran small
crafted probes through the call that its section states, and its results were compared with attention computed under
every named alternative. A mask given to it is given as it is: the suite translates names and the order of axes, never
conventions. A remedy is named only where it was run on the same call and gave the specification's answer; "none known"
says no more than that. What is said of a call holds for that call, on the processor and with the versions stated here:
a GPU's kernels may differ. Below each section is code without gqa that shows those of its rows that a few lines can
show, and what it prints; the tests run it. `gqa dialect NAME` runs one section again, `gqa dialect --all --check
docs/dialects.md` tells what has changed since.
"""


def markdown(found_by_name: dict[str, list[Finding]], missing: dict[str, str]) -> str:
    """A section for each implementation with what differs and the remedy, then a table of everything."""
    parts = [HEAD, _run(), "## Where each one differs"]
    parts += [_section(name, found) for name, found in found_by_name.items()]
    parts += ["## Everything", _matrix(found_by_name)]
    if missing:
        parts += ["## Not judged", "\n".join(f"- {sentence}" for sentence in missing.values())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _run() -> str:
    """When, with what and on what this was found."""
    return (
        f"Run on {date.today().isoformat()} with gqa {version_of('gqa')}, Python {platform.python_version()}, NumPy "
        f'{np.__version__}, on a CPU ({platform.machine()}). Probes are float32 but for the rows "16-bit scores" '
        f'(bfloat16, float16) and "float64"; JAX runs with x64 on.'
    )


def _section(name: str, found: list[Finding]) -> str:
    row = PUBLIC.get(name)
    lines = [f"### {name}" + (f" ({row.versions})" if row else "")]
    if row:
        lines += ["", f"Call: `{row.call}`." + (f" {row.notes}" if row.notes else "")]
    different = [f for f in found if f.agrees is False]
    unknown = [f.convention for f in found if f.answer == UNDECIDED]
    if different:
        lines += ["", "| convention | its answer | remedy |", "| --- | --- | --- |"]
        lines += [f"| {f.convention} | {_answer(f)} | {_remedy(f)} |" for f in different]
    else:
        lines += ["", "Follows the specification in everything that it supports."]
    lines += ["", f"Cannot be told: {', '.join(unknown)}."] if unknown else []
    return "\n".join(lines + _snippet(name, found))


def _snippet(name: str, found: list[Finding]) -> list[str]:
    """The code that shows rows of a section by the library alone, collapsed, and what it prints."""
    code, printed = snippet(name, found)
    if not printed:
        return []
    opened = ["", "<details><summary>The same without gqa: code, and what it prints</summary>", ""]
    return [*opened, "```python", code, "```", "", "```text", printed, "```", "", "</details>"]


def _matrix(found_by_name: dict[str, list[Finding]]) -> str:
    """One row per convention: the specification's choice, who follows it, who does not, who cannot be told."""
    lines = [
        "| convention | SPEC.md | follow it | do not | cannot be told | not supported by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i, convention in enumerate(CONVENTIONS):
        about = {name: found[i] for name, found in found_by_name.items()}
        follow = [name for name, f in about.items() if f.agrees]
        differ = [f"{name} ({_answer(f)})" for name, f in about.items() if f.agrees is False]
        unknown = [name for name, f in about.items() if f.agrees is None and f.answer == UNDECIDED]
        without = [name for name, f in about.items() if f.agrees is None and f.answer != UNDECIDED]
        cells = (convention.name, _cell(convention.spec), *(", ".join(x) for x in (follow, differ, unknown, without)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def changes(page: str, found_by_name: dict[str, list[Finding]]) -> Iterator[str]:
    """What the sections of a page say otherwise than these findings, one sentence each."""
    written = _differences(page)
    now = {
        name: {f.convention: _answer(f) for f in found if f.agrees is False} for name, found in found_by_name.items()
    }
    for name in now:
        if name not in written:
            yield f"{name}: has no section"
            continue
        for convention in {**written[name], **now[name]}:
            before, after = (side.get(convention, "as SPEC.md, or not told") for side in (written[name], now[name]))
            if before != after:
                yield f"{name}: {convention}: was {before}, is {after}"


def _differences(page: str) -> dict[str, dict[str, str]]:
    """By name of section: convention -> answer."""
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("### "):
            section = found.setdefault(line[4:].partition(" (")[0], {})
        elif line.startswith("## Everything"):
            break
        elif line.startswith("| ") and not line.startswith(("| convention", "| ---")):
            convention, answer, *_ = (cell.strip() for cell in line.strip("| ").split(" | "))
            section[convention] = answer
    return found


def _answer(finding: Finding) -> str:
    return _cell(f"raises {finding.raised}" if finding.raised else finding.answer)


def _remedy(finding: Finding) -> str:
    return "none needed: it refuses" if finding.raised else _cell(finding.remedy or "none known")


def _cell(words: str) -> str:
    return words.replace("|", "\\|")

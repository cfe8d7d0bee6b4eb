"""The table of public implementations and their conventions, as Markdown."""

from __future__ import annotations

from conformance.dialects.conventions import CONVENTIONS
from conformance.dialects.detect import Finding
from conformance.targets import PUBLIC

HEAD = """# Dialects: what public implementations do

Written by `gqa dialect --all --markdown docs/dialects.md`, from a run on a CPU; nothing here was typed in. Each
implementation ran small crafted probes through its own call, and its results were compared with attention
computed under every named alternative. A mask given to it is given as it is: the suite translates names and the order
of axes, never conventions.
"""


def markdown(found_by_name: dict[str, list[Finding]], missing: dict[str, str]) -> str:
    """A section for each implementation with what differs and the remedy, then a table of everything."""
    parts = [HEAD, "## Where each one differs", *(_section(name, found) for name, found in found_by_name.items())]
    parts += ["## Everything", _matrix(found_by_name)]
    if missing:
        parts += ["## Not judged", "\n".join(f"- {sentence}" for sentence in missing.values())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(name: str, found: list[Finding]) -> str:
    title = f"### {name} ({PUBLIC[name].versions})" if name in PUBLIC else f"### {name}"
    different = [f for f in found if f.agrees is False]
    rows = [f"| {f.convention} | {_answer(f)} | {f.remedy} |" for f in different]
    if not rows:
        return f"{title}\n\nFollows the specification in everything that it supports."
    return "\n".join([title, "", "| convention | its answer | remedy |", "| --- | --- | --- |", *rows])


def _matrix(found_by_name: dict[str, list[Finding]]) -> str:
    """One row per convention: the specification's choice, who follows it, who does not."""
    lines = [
        "| convention | SPEC.md | follow it | do not | unsupported or cannot be told |",
        "| --- | --- | --- | --- | --- |",
    ]
    for i, convention in enumerate(CONVENTIONS):
        about = {name: found[i] for name, found in found_by_name.items()}
        follow = [name for name, f in about.items() if f.agrees]
        differ = [f"{name} ({_answer(f)})" for name, f in about.items() if f.agrees is False]
        silent = [name for name, f in about.items() if f.agrees is None]
        lines.append(
            f"| {convention.name} | {convention.spec} | {', '.join(follow)} | {', '.join(differ)} | {len(silent)} |"
        )
    return "\n".join(lines)


def _answer(finding: Finding) -> str:
    said = f"raises {finding.raised}" if finding.raised else finding.answer
    return said.replace("|", "\\|")

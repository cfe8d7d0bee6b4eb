"""What `gqa dialect` finds out and prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from conformance.checks.judge import Options, detect
from conformance.dialects.conventions import CONVENTION
from conformance.dialects.detect import UNDECIDED, Finding
from conformance.dialects.markdown import changes, markdown
from conformance.report.summary import ARRAYS_HINT
from conformance.targets import PUBLIC, NotATarget
from gqa.interrupt import silence_children
from gqa.lines import Indented
from gqa.outputs import STDOUT, list_written, write_json
from gqa.progress import bars
from gqa.targets import check_target

MOST = 6  # differences on the screen; each takes up to three lines
NAME = max(map(len, CONVENTION)) + 2  # columns of a convention's name


def dialects(
    target: str | None, options: Options, details: bool, json: Path | None, file: Path | None, check: Path | None
) -> int:
    """Of one target, or without one of every public implementation; 1 where a page says something else."""
    if target is not None:
        check_target("TARGET", target)
    answers, missing = _answers([target] if target else list(PUBLIC), options)
    if json != STDOUT:
        console = Console()
        for part in (
            _screen(target, answers, details, options.arrays) if target else _screen_of_all(answers, missing, details)
        ):
            console.print(part, highlight=False)
    if file is not None:
        file.write_text(markdown(answers, missing))
    if json is not None:
        write_json(json, {name: [_as_json(finding) for finding in found] for name, found in answers.items()})
    list_written(json, file)
    if check is None:
        return 0
    found = list(changes(check.read_text(encoding="utf-8"), answers))
    for sentence in found or [f"{check}: nothing has changed"]:
        Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
    return 1 if found else 0


def _answers(names: list[str], options: Options) -> tuple[dict[str, list[Finding]], dict[str, str]]:
    """The findings on each target, and why others have none. Raises ValueError where the only one has none."""
    silence_children()
    answers: dict[str, list[Finding]] = {}
    missing: dict[str, str] = {}
    with bars() as progress:
        bar = progress.add_task("targets" if len(names) > 1 else names[0], total=len(names))
        for name in names:
            try:
                answers[name] = detect(name, options)
            except NotATarget as error:
                if len(names) == 1:
                    raise ValueError(str(error)) from error
                missing[name] = str(error)
            progress.update(bar, advance=1)
    return answers, missing


def _screen(
    target: str, answers: dict[str, list[Finding]], details: bool, arrays: str | None
) -> Iterator[RenderableType]:
    """The verdict, then what differs with its remedy; all conventions with `details`."""
    found = answers[target]
    different = [each for each in found if _differs(each)]
    yield f"{_verdict(different)}  {_counted(found, different)}"
    yield Text(f"target {target}")
    if target in PUBLIC:
        yield Indented(f"call: {PUBLIC[target].call}", 2)
    yield ""
    for each in found if details else different[:MOST]:
        yield from _lines(each, details)
    if different and all(each.raised for each in different) and arrays is None and ":" in target:
        yield ARRAYS_HINT
    if not details:
        if len(different) > MOST:
            yield f"and {len(different) - MOST} more that differ"
        yield "more: --details (every convention, the evidence) · --json FILE"
        yield Text(f"next: gqa conform --target {target}")


def _screen_of_all(
    answers: dict[str, list[Finding]], missing: dict[str, str], details: bool
) -> Iterator[RenderableType]:
    """One line for each target, or each as a target alone."""
    if details:
        for name in answers:
            yield from (*_screen(name, answers, details, None), "")
    else:
        widest = max(map(len, answers), default=0) + 2
        yield f"{'target'.ljust(widest)}differs in"
        for name, found in answers.items():
            different = [each.convention for each in found if _differs(each)]
            line = Text(f"{name.ljust(widest)}{len(different):>2}  {', '.join(different)}")
            line.truncate(80, overflow="ellipsis")
            yield line
    yield from (Text.assemble(("left out: ", "yellow"), sentence) for sentence in missing.values())
    if not details:
        yield "more: --details · --markdown FILE · gqa dialect NAME"


def _differs(finding: Finding) -> bool:
    return finding.agrees is False and not finding.unsupported


def _verdict(different: list[Finding]) -> str:
    return "[bold red]DIFFERS[/]" if different else "[bold green]AGREES[/]"


def _counted(found: list[Finding], different: list[Finding]) -> str:
    unsupported = sum(bool(each.unsupported) for each in found)
    unknown = sum(each.answer == UNDECIDED for each in found)
    agree = len(found) - len(different) - unsupported - unknown
    parts = [f"{len(different)} of {len(found)} conventions differ from SPEC.md", f"{agree} agree"]
    parts += [f"{unsupported} not supported"] if unsupported else []
    parts += [f"{unknown} not told apart"] if unknown else []
    return ", ".join(parts)


def _lines(finding: Finding, details: bool) -> Iterator[RenderableType]:
    name = f"{finding.convention.ljust(NAME - 1)} "
    if finding.unsupported:
        yield Text(f"{name}not supported: {finding.unsupported}", style="dim")
        return
    if not _differs(finding):
        yield Text(f"{name}{finding.answer}", style="green" if finding.agrees else "dim")
        return
    convention = CONVENTION[finding.convention]
    answer = "raised" if finding.raised else finding.answer
    yield Text.assemble(name, (answer, "bold red"))
    yield Indented(f"SPEC {convention.clause}: {convention.spec}", 4)
    if finding.raised and not details:
        yield Indented(finding.raised, 4)
    if finding.remedy:
        yield Indented(f"remedy: {finding.remedy}", 4)
    if details:
        yield from (Indented(part, 4, "dim") for part in (finding.raised or finding.evidence, finding.where) if part)


def _as_json(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"agrees": finding.agrees}

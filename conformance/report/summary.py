"""The screen of `gqa conform`: the verdict first, at most 24 lines of 80 columns. The tables are the details."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from conformance.cases.table import FEATURE
from conformance.checks.check import Check
from conformance.dialects.conventions import CONVENTION
from conformance.mutants.run import MutantResult
from conformance.report.reproduce import command, feature_of
from conformance.report.tables import causes, counts, package_version
from conformance.targets import BACKENDS

# Clause of SPEC.md -> the row that shows its cases.
SUBJECTS = {
    1: "plain, scale, softcap",
    2: "plain, scale, softcap",
    3: "masks and bias",
    4: "causal, window, chunk",
    5: "empty rows, poison",
    6: "empty rows, poison",
    8: "sinks",
    9: "dropout",
    10: "RoPE",
    11: "QK-norm",
}
OTHERS = "biases, other settings"
REAL = "SmolLM2, 30 layers"
DTYPES = {"float64": "f64", "float32": "f32"}
MOST_CAUSES = 6
ARRAYS_HINT = "It raised everywhere: a function that takes torch or jax arrays needs --arrays torch or --arrays jax."
WIDTH, NAMES, CELL = 80, 24, 8
SHORT = "float32"  # the default of `gqa trace --dtype`
UNNAMED = {"nothing named": "no convention that has a name reproduces it"}


def header(seconds: float) -> Text:
    """What ran, with which versions, and how long."""
    versions = [f"{package} {_release(found)}" for package in BACKENDS if (found := package_version(package))]
    minutes, rest = divmod(round(seconds), 60)
    taken = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    left = f"gqa conform    {' · '.join(versions)}"
    return Text(left + taken.rjust(WIDTH - len(left)))


def backends_screen(checks: list[Check], results: list[MutantResult], not_run: list[str]) -> Iterator[RenderableType]:
    """Our backends against each other."""
    counted, between = counts(checks), compared(checks)
    missed = [result for result in results if not result.caught_by]
    failed = counted["fail"] or missed
    word = "[bold red]DIFFER[/]" if failed else "[bold green]AGREE[/]" if between else "[bold yellow]NOT COMPARED[/]"
    mutants = f"; {len(results) - len(missed)} of {len(results)} planted mutants caught" if results else ""
    yield f"{word}  {_counted(counted)}{mutants}"
    if not between:
        yield "Only one backend is installed, so none could be compared with another."
    yield ""
    if between:
        yield from _errors(checks)
        yield ""
    yield from _reasons(checks)
    for result in missed[:MOST_CAUSES]:
        yield Text.assemble(("not caught: ", "red"), f"{result.bug}, {result.what}")
    yield from (Text.assemble(("left out: ", "yellow"), part) for part in not_run)
    yield Text(f"more: --details ({len({check.row for check in checks})} groupings) · --html FILE · --mutants")
    yield Text("yours: gqa conform --target my_module:MyAttention")


def compared(checks: list[Check]) -> bool:
    """Whether any backend was compared with another, which takes two that are installed."""
    return any(" to " in check.column for check in checks)


def target_screen(
    name: str, checks: list[Check], arrays: str | None = None, notes: Sequence[str] = ()
) -> Iterator[RenderableType]:
    """Somebody's attention against the specification: what differs and why, and what it does not take."""
    counted = counts(checks)
    failed = [check for check in checks if check.verdict == "fail"]
    word = "[bold red]DIFFERS[/]" if failed else "[bold green]AGREES[/]"
    if not failed and not counted["pass"]:
        word = "[bold yellow]NOT COMPARED[/]"
    yield f"{word}  {_counted(counted)}"
    yield Text(f"target {name}")
    yield from (Text(f"  {note}") for note in notes)
    yield ""
    if failed:
        yield from _causes(failed)
    if arrays is None and failed and all(check.reason.startswith("raised") for check in failed):
        yield ARRAYS_HINT
        yield ""
    yield from _not_taken(checks)
    yield "more: --details (all groupings) · --html FILE (pictures of what failed)"
    yield "next, for every convention with its remedy" + (", and for the first stage that differs" if failed else "")
    yield Text(f"  gqa dialect {name}" + (f" --arrays {arrays}" if arrays else ""))
    if failed:
        yield Text(f"  {_shown(command(_most_telling(failed), arrays))}")


def answers_screen(folder: str, checks: list[Check]) -> Iterator[RenderableType]:
    """Answers to the cases of `gqa vectors`."""
    failed = [check for check in checks if check.verdict == "fail"]
    yield f"{'[bold red]DIFFERS[/]' if failed else '[bold green]AGREES[/]'}  {_counted(counts(checks))}"
    yield Text(f"answers in {folder}")
    yield ""
    if failed:
        yield from _causes(failed)
    yield from _not_taken(checks)


def targets_screen(checks: dict[str, list[Check]], not_run: list[str]) -> Iterator[RenderableType]:
    """One line for each target; all causes are the details."""
    widest = max((len(name) for name in checks), default=0) + 2
    titles = "".join(word.rjust(CELL) for word in ("passed", "failed", "not sup"))
    yield f"{'target'.ljust(widest)}{titles}  most frequent cause"
    for name, found in checks.items():
        counted, failed = counts(found), [check for check in found if check.verdict == "fail"]
        first = Counter(cause for check in failed for cause in causes(check)).most_common(1)
        numbers = "".join(str(counted[verdict]).rjust(CELL) for verdict in ("pass", "fail", "unsupported"))
        line = Text(f"{name.ljust(widest)}{numbers}  {first[0][0] if first else ''}")
        line.truncate(WIDTH, overflow="ellipsis")
        yield line
    yield ""
    yield from (Text.assemble(("left out: ", "yellow"), part) for part in not_run)
    yield "more: --details (all causes) · gqa conform --target NAME"


def _counted(counted: dict[str, int]) -> str:
    """In words; what is not supported is not counted as passed."""
    unsupported = f", {counted['unsupported']} not supported" if counted["unsupported"] else ""
    return f"{counted['pass']} checks passed, {counted['fail']} failed{unsupported}"


def _errors(checks: list[Check]) -> Iterator[RenderableType]:
    """The worst error of each subject between each pair of backends, in both dtypes."""
    cells: dict[tuple[str, str, str], float] = defaultdict(float)
    failing = Counter(_subject(check) for check in checks if check.verdict == "fail")
    for check in checks:
        pair, _, dtype = check.column.rpartition(", ")
        if " to " in pair and check.verdict != "unsupported":
            key = (_subject(check), " ~ ".join(sorted(pair.split(" to "), key=BACKENDS.index)), dtype)
            cells[key] = max(cells[key], check.error)
    pairs = [pair for a, b in combinations(BACKENDS, 2) if (pair := f"{a} ~ {b}") in {p for _, p, _ in cells}]
    yield "Worst error, in roundings (eps) of the dtype" + ("" if failing else "; every cell is within its bound")
    yield Text((" " * NAMES + "".join(pair.rjust(2 * CELL) for pair in pairs)).rstrip())
    yield Text(" " * NAMES + "".join(short.rjust(CELL) for short in DTYPES.values()) * len(pairs))
    for subject in [*dict.fromkeys(SUBJECTS.values()), OTHERS, REAL]:
        found = [cells.get((subject, pair, dtype)) for pair in pairs for dtype in DTYPES]
        if any(error is not None for error in found):
            mark = f"[red]{failing[subject]} failed[/]" if failing[subject] else "[green]ok[/]"
            yield f" {subject}".ljust(NAMES) + "".join(map(_cell, found)) + f"   {mark}"


def _cell(error: float | None) -> str:
    shown = "" if error is None else f"{error:.1f}" if error < 1000 else f"{error:.1g}"
    return shown.rjust(CELL)


def is_real(check: Check) -> bool:
    """Whether a check is of the real model's weights."""
    return check.row.startswith("SmolLM2")


def _subject(check: Check) -> str:
    if is_real(check):
        return REAL
    feature = feature_of(check)
    return SUBJECTS.get(FEATURE[feature].clause, OTHERS) if feature else OTHERS


def _reasons(checks: list[Check]) -> Iterator[RenderableType]:
    failed = [check for check in checks if check.verdict == "fail"]
    if failed:
        yield from _causes(failed)
        yield Text(f"next: {_shown(command(_most_telling(failed)))}")


def cause_counts(failed: list[Check]) -> list[tuple[str, int]]:
    """Each cause with the number of failed checks that it has a part in, most frequent first."""
    return Counter(cause for check in failed for cause in causes(check)).most_common()


def _causes(failed: list[Check]) -> Iterator[RenderableType]:
    """Names of conventions with the number of failed checks that each has a part in, and where SPEC.md says it."""
    counted = cause_counts(failed)
    yield "Causes, with the failed checks that each has a part in"
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for cause, count in counted[:MOST_CAUSES]:
        table.add_row(f"  {count}", Text(_with_expected(cause, failed), style="red"))
    yield table
    if len(counted) > MOST_CAUSES:
        yield f"  and {len(counted) - MOST_CAUSES} more with --details"
    yield ""


def _with_expected(cause: str, failed: list[Check]) -> str:
    known = expected(cause)
    return in_full(cause, failed) + (f" ({known})" if known else "")


def in_full(cause: str, failed: list[Check]) -> str:
    """What was raised, with the message of the first."""
    if cause.startswith("raised "):
        return next(check.reason for check in failed if check.reason.startswith(cause))
    return UNNAMED.get(cause, cause)


def expected(cause: str) -> str:
    """What the specification says instead, by clause."""
    convention = CONVENTION.get(cause.partition(": ")[0])
    return f"SPEC {convention.clause}: {convention.spec}" if convention else ""


def _most_telling(failed: Sequence[Check]) -> Check:
    """A check of the most frequent cause, of an array rather than of gradients."""
    counted = Counter(cause for check in failed for cause in causes(check))

    def rank(check: Check) -> tuple[bool, int, bool]:
        return bool(check.explanation), max(counted[cause] for cause in causes(check)), check.column.endswith(SHORT)

    return max(failed, key=rank)


def _shown(line: str) -> str:
    """Without the option that is the default of `gqa trace`."""
    return line.replace(f" --dtype {SHORT}", "")


def _not_taken(checks: Iterable[Check]) -> Iterator[RenderableType]:
    """The settings that the target has no argument for, and other reasons, most frequent first."""
    settings: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for check in checks:
        if check.verdict == "unsupported":
            taken = re.match(r"takes no (.*)$", check.reason)
            if taken:
                settings.update(taken[1].split(", "))
            else:
                others[check.reason] += 1
    if settings:
        yield Text("It takes no " + ", ".join(name for name, _ in settings.most_common()))
    if others:
        shown = [f"{reason} ({count})" for reason, count in others.most_common(3)]
        more = f", and {len(others) - 3} other reasons" if len(others) > 3 else ""
        yield Text(f"Not supported: {'; '.join(shown)}{more}")
    if settings or others:
        yield ""


def _release(version: str) -> str:
    """Without what a build adds: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]

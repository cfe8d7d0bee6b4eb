"""What the planted mutants show: how many are caught here, in other projects' tests, and by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from conformance.mutants.naming import Naming
from conformance.mutants.run import MutantResult

SUITE = 7  # columns of a count


@dataclass(frozen=True)
class Power:
    """results: ours. elsewhere: suite -> mutant -> its tests that catch it. usable: suite -> how many of how many tests
    can run a kernel. named: what `gqa dialect` says of each mutant that is a convention.
    """

    results: list[MutantResult]
    elsewhere: Mapping[str, Mapping[str, tuple[str, ...]]]
    usable: Mapping[str, tuple[int, int]]
    named: list[Naming]

    @property
    def missed(self) -> list[MutantResult]:
        return [result for result in self.results if not result.caught_by]


def power_screen(power: Power) -> Iterator[RenderableType]:
    """The verdict, a line for each family, and the mutants that are caught by the fewest cases."""
    caught = len(power.results) - len(power.missed)
    word = "[bold red]NOT ALL CAUGHT[/]" if power.missed else "[bold green]ALL CAUGHT[/]"
    yield f"{word}  {caught} of {len(power.results)} planted mutants"
    yield from (Text.assemble(("not caught: ", "red"), f"{result.bug}, {result.what}") for result in power.missed)
    yield ""
    yield _families(power)
    yield ""
    for suite, (usable, there) in power.usable.items():
        yield f"{suite}: {usable} of {there} tests can run a kernel"
    right = sum(found.right for found in power.named)
    yield f"gqa dialect names {right} of the {len(power.named)} that are conventions"
    weakest = sorted((r for r in power.results if r.caught_by), key=lambda result: len(result.caught_by))[:3]
    yield "caught by the fewest cases: " + ", ".join(f"{r.bug} ({len(r.caught_by)})" for r in weakest)
    yield "more: --details (every mutant, every kind of case) · --json FILE"


def power_details(power: Power) -> Iterator[RenderableType]:
    """Each mutant with the number of cases that catch it, and each kind of case with the mutants that it catches."""
    yield _each(power)
    yield _kinds_of_cases(power.results)


def mutant_table(results: list[MutantResult]) -> Table:
    """Planted mutants, and the first case that catches each."""
    table = Table(title="Planted mutants", box=box.SIMPLE_HEAD)
    table.add_column("mutant, and what is wrong", overflow="fold", ratio=3)
    table.add_column("caught first by", overflow="fold", ratio=2)
    for result in results:
        first = Text(result.caught_by[0]) if result.caught_by else Text("NOT CAUGHT", style="bold red")
        table.add_row(Text.assemble(result.bug, "\n", (result.what, "dim")), first)
    return table


def _families(power: Power) -> Table:
    table = _counts_table("family", power)
    for family in dict.fromkeys(result.family for result in power.results):
        own = [result for result in power.results if result.family == family]
        shares = [_share([found[r.bug] for r in own if r.bug in found]) for found in power.elsewhere.values()]
        table.add_row(family, _share([result.caught_by for result in own]), *shares)
    return table


def _each(power: Power) -> Table:
    table = _counts_table("mutant", power)
    table.add_column("gqa dialect", overflow="fold")
    names = {found.bug: Text(found.found, style="" if found.right else "bold red") for found in power.named}
    for result in power.results:
        others = [_count(found.get(result.bug)) for found in power.elsewhere.values()]
        ours = f"{len(result.caught_by)} of {result.shown}" if result.caught_by else "[bold red]0[/]"
        table.add_row(result.bug, ours, *others, names.get(result.bug, ""))
    return table


def _counts_table(first: str, power: Power) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption="empty: not run there", caption_justify="left", pad_edge=False)
    table.add_column(first, no_wrap=True)
    table.add_column("caught here", justify="right", no_wrap=True)
    for suite in power.elsewhere:
        table.add_column(suite, justify="right", no_wrap=True, min_width=SUITE)
    return table


def _kinds_of_cases(results: list[MutantResult]) -> Table:
    """Kinds of cases (the part of a name after the grouping), those first that catch what few others do."""
    table = Table(box=box.SIMPLE_HEAD, title="Cases: what they catch, first what few others catch", pad_edge=False)
    table.add_column("cases", overflow="fold", ratio=2)
    table.add_column("mutants", justify="right", no_wrap=True)
    table.add_column("caught by these and few others", overflow="fold", ratio=3)
    caught = {result.bug: {case.split(" / ")[-1] for case in result.caught_by} for result in results}
    for kind in dict.fromkeys(case for cases in caught.values() for case in sorted(cases)):
        own = sorted((bug for bug in caught if kind in caught[bug]), key=lambda bug: len(caught[bug]))
        table.add_row(kind, str(len(own)), ", ".join(f"{bug} ({len(caught[bug])})" for bug in own[:3]))
    return table


def _count(tests: tuple[str, ...] | None) -> str:
    return "" if tests is None else str(len(tests)) if tests else "[bold red]0[/]"


def _share(rows: list[tuple[str, ...]]) -> str:
    return f"{sum(map(bool, rows))} of {len(rows)}" if rows else ""

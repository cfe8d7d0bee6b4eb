"""The whole run: which checks, in which order, on both cores. Yields checks as they are done; prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context

from conformance.cases.table import ALL_FEATURES, OTHER_ROWS, kernel_cases, layer_cases
from conformance.checks.backends import backend_checks, kernel_checks
from conformance.checks.check import Check
from conformance.checks.multi_head import mha_checks
from conformance.mutants.run import MutantResult, mutant_results
from conformance.targets import BACKENDS, Backend
from conformance.targets.frameworks import available, one_thread, quick_to_compile, set_x64

DTYPES = ("float64", "float32")
WORKERS = 2
BATCH = 4
LARGEST = 3_000_000  # pairs of a query and a key: a layer of 2051 tokens, in six directions, takes a minute
MUTANT_FAMILIES = (
    "kernel",
    "layer",
)  # what every run shows its cases; `gqa conform --mutants` shows all


@dataclass(frozen=True)
class Task:
    """A few cases in one dtype, small enough to share out between processes. kind: a key of `_KINDS`."""

    kind: str
    dtype: str
    names: tuple[str, ...]
    backends: tuple[str, ...]

    @property
    def size(self) -> int:
        return max(len(self.names), 1)


def installed_backends() -> tuple[str, ...]:
    return tuple(backend for backend in BACKENDS if available(backend))


def backend_tasks() -> list[Task]:
    """Layers in all directions, kernels, and nn.MultiheadAttention where torch is installed."""
    backends = installed_backends()
    tasks = [Task("mha", dtype, (), backends) for dtype in DTYPES] if "torch" in backends else []
    kernels = [case for case in kernel_cases() if case.grouping in (ALL_FEATURES, *OTHER_ROWS) or case.feature.sizes]
    layers = [case for case in layer_cases() if case.pairs < LARGEST]
    for kind, cases in (("backends", layers), ("kernels", kernels)):
        for names in batched((case.name for case in cases), BATCH):
            tasks += [Task(kind, dtype, names, backends) for dtype in DTYPES]
    return tasks


def run(
    tasks: list[Task], done: Callable[[int], None], *, mutants: bool = False
) -> tuple[list[Check], list[MutantResult]]:
    """Every check of every task, and where they are asked for the planted bugs, each until a case catches it.

    `done` is told how many cases have just been finished.
    """
    quick_to_compile()
    checks: dict[Task, list[Check]] = {}
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        results = pool.submit(mutant_results, MUTANT_FAMILIES, whole=False) if mutants else None  # the longest
        futures = {pool.submit(perform, task): task for task in tasks}
        for future in as_completed(futures):
            checks[futures[future]] = future.result()
            done(futures[future].size)
        found = results.result() if results is not None else []
    return list(chain.from_iterable(checks[task] for task in tasks)), found


def perform(task: Task) -> list[Check]:
    """One task in this process."""
    if "jax" in task.backends:
        set_x64(task.dtype != "float32")
    return list(_KINDS[task.kind](task))


def _backends(task: Task) -> Iterator[Check]:
    for case in layer_cases():
        if case.name in task.names:
            yield from backend_checks(case, task.dtype, task.backends)


def _kernels(task: Task) -> Iterator[Check]:
    for case in kernel_cases():
        if case.name in task.names:
            for backend in task.backends:
                yield from kernel_checks(case, task.dtype, Backend(backend))


def _mha(task: Task) -> Iterator[Check]:
    yield from mha_checks(task.dtype, task.backends)


_KINDS: dict[str, Callable[[Task], Iterable[Check]]] = {
    "backends": _backends,
    "kernels": _kernels,
    "mha": _mha,
}


def batched(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    remaining = iter(names)
    while batch := tuple(islice(remaining, size)):
        yield batch

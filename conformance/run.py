"""The whole run: which checks, in which order, on both cores. Yields checks as they are done; prints nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

from conformance.cases import ALL_FEATURES, kernel_cases, layer_cases
from conformance.frameworks import available
from conformance.kill import Kill, kill_table
from conformance.mha import mha_checks
from conformance.proof import Check, foreign_checks, kernel_checks, wing_checks
from conformance.targets import WINGS, ForeignClass, Wing, find_target

DTYPES = ("float64", "float32")
WORKERS = 2
BATCH = 4


@dataclass(frozen=True)
class Task:
    """A few cases in one dtype, small enough to share out between processes. kind: a key of `_KINDS`."""

    kind: str
    dtype: str
    names: tuple[str, ...]
    wings: tuple[str, ...]
    target: tuple[str, str | None] = ("", None)

    @property
    def size(self) -> int:
        return max(len(self.names), 1)


def installed_wings() -> tuple[str, ...]:
    return tuple(wing for wing in WINGS if available(wing))


def wing_tasks() -> list[Task]:
    """Layers in all directions, kernels, and nn.MultiheadAttention where torch is installed."""
    wings = installed_wings()
    tasks = [Task("mha", dtype, (), wings) for dtype in DTYPES] if "torch" in wings else []
    kernels = [case for case in kernel_cases() if case.grouping == ALL_FEATURES]  # the layers cover the others
    for kind, cases in (("wings", layer_cases()), ("kernels", kernels)):
        for names in batched((case.name for case in cases), BATCH):
            tasks += [Task(kind, dtype, names, wings) for dtype in DTYPES]
    return tasks


def target_tasks(path: str, arrays: str | None) -> list[Task]:
    """One target given as MODULE:NAME. Raises NotATarget before any work is done."""
    is_class = isinstance(find_target(path, arrays), ForeignClass)
    kind, cases = ("foreign class", layer_cases()) if is_class else ("foreign kernel", kernel_cases())
    batches = batched((case.name for case in cases), BATCH)
    return [Task(kind, dtype, names, (), (path, arrays)) for names in batches for dtype in DTYPES]


def run(
    tasks: list[Task], done: Callable[[int], None], *, planted_bugs: bool = False
) -> tuple[list[Check], list[Kill]]:
    """Every check of every task, and where they are asked for the planted bugs, each until a case catches it.

    `done` is told how many cases have just been finished.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # two workers share two cores
    # Programs this small run no faster for LLVM's optimizer, which is a third of the time they take to compile.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    checks: dict[Task, list[Check]] = {}
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        kills = pool.submit(kill_table, whole=False) if planted_bugs else None  # first, because it is the longest
        futures = {pool.submit(perform, task): task for task in tasks}
        for future in as_completed(futures):
            checks[futures[future]] = future.result()
            done(futures[future].size)
        found = kills.result() if kills is not None else []
    return list(chain.from_iterable(checks[task] for task in tasks)), found


def perform(task: Task) -> list[Check]:
    """One task in this process."""
    if "jax" in task.wings or task.target[0]:
        _set_x64(task.dtype != "float32")
    return list(_KINDS[task.kind](task))


def _wings(task: Task) -> Iterator[Check]:
    for case in layer_cases():
        if case.name in task.names:
            yield from wing_checks(case, task.dtype, task.wings)


def _kernels(task: Task) -> Iterator[Check]:
    for case in kernel_cases():
        if case.name in task.names:
            for wing in task.wings:
                yield from kernel_checks(case, task.dtype, Wing(wing))


def _mha(task: Task) -> Iterator[Check]:
    yield from mha_checks(task.dtype, task.wings)


def _foreign_class(task: Task) -> Iterator[Check]:
    target = find_target(*task.target)
    for case in layer_cases():
        if case.name in task.names:
            yield from foreign_checks(case, task.dtype, target)  # type: ignore[arg-type]


def _foreign_kernel(task: Task) -> Iterator[Check]:
    target = find_target(*task.target)
    for case in kernel_cases():
        if case.name in task.names:
            yield from kernel_checks(case, task.dtype, target)  # type: ignore[arg-type]


_KINDS: dict[str, Callable[[Task], Iterable[Check]]] = {
    "wings": _wings,
    "kernels": _kernels,
    "mha": _mha,
    "foreign class": _foreign_class,
    "foreign kernel": _foreign_kernel,
}


def _set_x64(on: bool) -> None:
    if available("jax"):
        import jax

        jax.config.update("jax_enable_x64", on)


def _start_worker() -> None:
    """One thread each, and compiled programs kept between runs: compiling them is most of a first run."""
    if available("torch"):
        import torch

        torch.set_num_threads(1)
    if available("jax"):
        import jax

        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gqa" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def batched(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    remaining = iter(names)
    while batch := tuple(islice(remaining, size)):
        yield batch

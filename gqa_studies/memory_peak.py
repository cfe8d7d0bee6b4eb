"""The peak of memory above a call's inputs, each backend in a process of its own.

`python -m gqa_studies.memory_peak BACKEND CASE T` is one of these processes.
What `need_weights=False` promises is that the weights, 8 GiB at N=32, T=S=8192 in float32, never exist all at once.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_studies.machine import installed
from gqa_studies.timing import seconds

Array = np.ndarray
N, K, H, LENGTH = 32, 8, 64, 8192
BACKENDS = {"numpy": (), "torch": ("torch",), "jax": ("jax", "flax")}
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Load:
    """What a call is given beside causal=True, and the most memory that it may take. mask: its dtype."""

    limit: int
    softcap: float | None = None
    sinks: bool = False
    mask: str | None = None


LOADS = {
    "causal": Load(256 * MEBIBYTE),
    "causal, softcap, sinks, boolean mask": Load(1536 * MEBIBYTE, softcap=30.0, sinks=True, mask="bool"),
    "causal, softcap, sinks, floating mask": Load(1536 * MEBIBYTE, softcap=30.0, sinks=True, mask="float32"),
}


@dataclass(frozen=True)
class Peak:
    name: str
    peak_mebibytes: float
    limit_mebibytes: float
    seconds: float
    verdict: str


def rows(only: str | None) -> list[tuple[str, str]]:
    """(backend, load) for each row whose name contains the pattern, `*` and `?` match anything."""
    pattern = f"*{only or ''}*".lower()
    return [(backend, load) for backend in BACKENDS for load in LOADS if fnmatch(name(backend, load).lower(), pattern)]


def name(backend: str, load: str) -> str:
    return f"gqa_{backend} {load}"


def missing(backend: str) -> list[str]:
    return [package for package in BACKENDS[backend] if not installed(package)]


def measure(backend: str, load: str, length: int = LENGTH) -> Peak:
    command = [sys.executable, "-m", "gqa_studies.memory_peak", backend, load, str(length)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    limit = LOADS[load].limit
    return Peak(
        name(backend, load),
        found["peak"] / MEBIBYTE,
        limit / MEBIBYTE,
        found["seconds"],
        "reached" if found["peak"] < limit else "missed",
    )


def inputs(load: Load, length: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    arrays = {
        argument: rng.standard_normal((1, heads, length, H), dtype=np.float32)
        for argument, heads in (("query", N), ("key", K), ("value", K))
    }
    if load.sinks:
        arrays["sinks"] = rng.standard_normal(N, dtype=np.float32)
    if load.mask is not None:
        arrays["mask"] = np.ones((length, length), load.mask)
    return arrays


def call(backend: str, load: Load, length: int) -> Callable[[], Any]:
    """A call without arguments, compiled where the backend compiles, that returns when its result is there."""
    settings: dict[str, Any] = {"causal": True, "softcap": load.softcap, "need_weights": False}
    arrays: dict[str, Any] = inputs(load, length)
    if backend == "numpy":
        import gqa_numpy

        return partial(gqa_numpy.grouped_query_attention, **arrays, **settings)
    if backend == "torch":
        import torch

        import gqa_torch

        arrays = {argument: torch.from_numpy(x) for argument, x in arrays.items()}
        return partial(gqa_torch.grouped_query_attention, **arrays, **settings)
    import jax

    import gqa_jax

    arrays = jax.block_until_ready({argument: jax.numpy.asarray(x) for argument, x in arrays.items()})
    compiled = jax.jit(partial(gqa_jax.grouped_query_attention, **settings)).lower(**arrays).compile()
    return lambda: jax.block_until_ready(compiled(**arrays))


def peak_above(call: Callable[[], Any]) -> tuple[int, float]:
    """The most memory held during the call beyond what is held now, in bytes, its result included; and its seconds."""
    gc.collect()  # JAX frees what it has copied only now; during the call it would hide as much of what the call holds
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what compilation and warm-up left in the heap could be reused unnoticed
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; elsewhere the result is a lower bound
    before = high_water()
    taken = seconds(call)
    return high_water() - before, taken


def high_water() -> int:
    """The most memory this process has held. Not getrusage's where there is better: a child's begins at its parent's,
    through fork and exec."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(backend: str, load: str, length: str) -> None:
    call(backend, LOADS[load], 64)()  # warm-up: libraries, threads
    peak, taken = peak_above(call(backend, LOADS[load], int(length)))
    print(json.dumps({"peak": peak, "seconds": taken}))


if __name__ == "__main__":
    main(*sys.argv[1:])

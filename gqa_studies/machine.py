"""The machine that a study ran on: its name, its packages, and the most that it can read and multiply."""

from __future__ import annotations

import os
import platform
import re
import statistics
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gqa_studies.timed_call import TimedCall
from gqa_studies.timing import seconds

PACKAGES = ("gqa", "numpy", "torch", "jax", "flax", "onnx", "transformers")
PROBES = 9


def installed(package: str) -> bool:
    return find_spec(package) is not None


class Limits:
    """The read bandwidth, by the sum of one large array, and the speed of one large sgemm. Measured with torch, which
    uses every core for both."""

    def __init__(self, floats: int = 2**26, width: int = 2048) -> None:
        import torch

        self._torch = torch
        self._array = torch.ones(floats)
        self._matrix = torch.ones(width, width)
        self.seconds_to_read(1), self.seconds_to_multiply(1)  # warm-up
        self.gigabytes_per_second = 1e-9 / statistics.median(self.seconds_to_read(1) for _ in range(PROBES))
        self.gigaflops = 1e-9 / statistics.median(self.seconds_to_multiply(1) for _ in range(PROBES))

    def seconds_to_read(self, count: float) -> float:
        """How long `count` bytes take at the speed of the sum, which is measured anew."""
        return count * seconds(self._array.sum) / self._array.nbytes

    def seconds_to_multiply(self, flops: int) -> float:
        """How long `flops` take at the speed of the sgemm, which is measured anew."""
        width = len(self._matrix)
        return flops * seconds(lambda: self._torch.mm(self._matrix, self._matrix)) / (2 * width**3)

    def seconds_of_roofline(self, case: TimedCall) -> float:
        """What no implementation can beat: all reading at full bandwidth, all products at full speed, at once."""
        return max(self.seconds_to_read(case.read_bytes), self.seconds_to_multiply(case.flops))


def description(limits: Limits | None) -> dict[str, Any]:
    """For the reader of a result. The load is of the minute before: above 0 the machine was not quiet."""
    return {
        "model": _model_name(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "read_gigabytes_per_second": limits and round(limits.gigabytes_per_second, 2),
        "sgemm_gigaflops": limits and round(limits.gigaflops, 1),
    }


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _model_name() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

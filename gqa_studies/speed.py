"""Our fast paths against the peers that people would use instead, and against what the machine can do at most."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from importlib import import_module
from typing import Any

import numpy as np

from gqa_studies.machine import Limits, installed
from gqa_studies.timed_call import TimedCall, tiny
from gqa_studies.timing import Pairs, paired, seconds

Array = np.ndarray
NEEDS = {"torch": ("torch",), "jax": ("jax", "flax"), "numpy": ("onnx",)}
SAME = {"float32": 1e-5, "bfloat16": 2e-2}  # largest difference between contenders, relative to the largest value
AT_PAR = 0.98  # "no slower", where both may well run the same kernel: 1 within the clock's noise
BANDWIDTH, ROOFLINE = "read bandwidth", "roofline"


class DifferentFunction(Exception):
    """A contender does not compute what we compute, so its time says nothing."""


@dataclass(frozen=True)
class Row:
    """One contender to be at least `target` times as fast as. Of the rows that share a `goal`, one is enough."""

    backend: str
    what: str
    case: TimedCall
    contender: str
    target: float
    goal: str = ""

    @property
    def name(self) -> str:
        case = self.case
        sizes = f"S={case.S}" if case.T == 1 else f"T=S={case.S}"
        window = "" if case.window is None else f" window={case.window}"
        return f"gqa_{self.backend} {self.what} {sizes} K={case.K}{window} {case.dtype}"

    @property
    def text(self) -> str:
        return f"{self.name} vs {self.contender}"


@dataclass(frozen=True)
class Figure:
    """A row with what was measured. `ratio` is the median over pairs, low and high its quartiles. Against a limit of
    the machine, `their_ms` is the time that the limit would take, and the ratio our share of it."""

    name: str
    contender: str
    pairs: int
    our_ms: float
    their_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    target: float
    goal: str
    gigabytes_per_second: float | None
    share_of_bandwidth: float | None


def rows() -> list[Row]:
    return torch_decode() + torch_single_kv_head() + torch_prefill() + torch_ragged() + jax_rows() + numpy_rows()


def torch_decode() -> list[Row]:
    found = []
    for S in (4096, 16384):
        for dtype, target in (("float32", 2.0), ("bfloat16", 10.0)):
            case = TimedCall(T=1, S=S, dtype=dtype)
            found.append(Row("torch", "decode", case, "SDPA(enable_gqa)", target))
            found.append(Row("torch", "decode", case, "repeat_interleave + SDPA", 12.0))
    return [*found, Row("torch", "decode", TimedCall(T=1, S=16384), BANDWIDTH, 0.55)]


def torch_single_kv_head() -> list[Row]:
    found = []
    for S in (4096, 16384):
        case, goal = TimedCall(T=1, S=S, K=1), f"torch K=1 S={S}"
        found.append(Row("torch", "decode", case, ROOFLINE, 0.4, goal))
        found.append(Row("torch", "decode", case, "SDPA(enable_gqa)", 4.0, goal))
    return found


def torch_prefill() -> list[Row]:
    windowed = TimedCall(T=8192, S=8192, window=512)
    return [
        Row("torch", "causal prefill", TimedCall(T=2048, S=2048), "SDPA(enable_gqa)", AT_PAR),
        Row("torch", "prefill", windowed, "SDPA(enable_gqa)", 5.0),
    ]


def torch_ragged() -> list[Row]:
    peer, lengths = "SDPA(enable_gqa)", (4096, 3000, 2000, 1000)
    return [
        Row("torch", f"ragged decode by {way}", TimedCall(1, 4096, lengths=lengths, lengths_as=way), peer, 2.0)
        for way in ("mask", "offset")
    ]


def jax_rows() -> list[Row]:
    peer = "jax.nn.dot_product_attention"
    return [
        Row("jax", "decode", TimedCall(T=1, S=4096), peer, 4.0),
        Row("jax", "decode", TimedCall(T=1, S=4096, dtype="bfloat16"), peer, 2.5),
        Row("jax", "causal prefill", TimedCall(T=512, S=512), peer, 2.0),
        Row("jax", "causal prefill", TimedCall(T=2048, S=2048), peer, 3.5),
    ]


def numpy_rows() -> list[Row]:
    peer = "onnx reference evaluator"
    return [
        Row("numpy", "decode", TimedCall(T=1, S=4096), peer, 8.0),
        Row("numpy", "causal prefill", TimedCall(T=384, S=384), peer, 2.0),
        Row("numpy", "causal prefill", TimedCall(T=2048, S=2048), peer, 4.0),
    ]


def chosen(only: str | None, *, quick: bool = False) -> list[Row]:
    """The rows whose text contains the pattern, `*` and `?` match anything. quick: then made tiny."""
    pattern = f"*{only or ''}*".lower()
    found = [row for row in rows() if fnmatch(row.text.lower(), pattern)]
    return [replace(row, case=tiny(row.case)) for row in found] if quick else found


def missing(row: Row) -> list[str]:
    """The packages that the row would need and that are not installed."""
    return [package for package in NEEDS[row.backend] if not installed(package)]


def measure(row: Row, limits: Limits | None, budget: float) -> Figure:
    """Raises DifferentFunction before any clock starts if the contender's result is not ours."""
    backend = import_module(f"gqa_studies.peers.{row.backend}")
    calls = backend.Calls(row.case)
    if row.contender in (BANDWIDTH, ROOFLINE):
        assert limits is not None, "the machine's limits are measured with torch, which these rows need anyway"
        pairs = paired(lambda: seconds(calls.ours), lambda: _limit(row, limits), budget)
    else:
        peer = backend.PEERS[row.contender]
        theirs = np.moveaxis(backend.to_numpy(peer.call(calls)), peer.heads_axis, 1)
        require_same(row, backend.to_numpy(calls.ours()), theirs)
        pairs = paired(lambda: seconds(calls.ours), lambda: seconds(lambda: peer.call(calls)), budget)
    return figure(row, pairs, limits)


def _limit(row: Row, limits: Limits) -> float:
    if row.contender == BANDWIDTH:
        return limits.seconds_to_read(row.case.read_bytes)
    return limits.seconds_of_roofline(row.case)


def require_same(row: Row, ours: Array, theirs: Array) -> None:
    if ours.shape != theirs.shape:
        raise DifferentFunction(f"shape {theirs.shape}, ours {ours.shape}")
    error = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not error <= SAME[row.case.dtype]:
        raise DifferentFunction(f"differs from ours by {error:.2g} of the largest value")


def figure(row: Row, pairs: Pairs, limits: Limits | None) -> Figure:
    case = row.case
    our_seconds = statistics.median(pairs.ours)
    rate = case.read_bytes / our_seconds / 1e9 if case.T == 1 and case.lengths is None else None
    return Figure(
        name=row.name,
        contender=row.contender,
        pairs=len(pairs.ours),
        our_ms=1e3 * our_seconds,
        their_ms=1e3 * statistics.median(pairs.theirs),
        ratio=pairs.ratio(),
        ratio_low=pairs.ratio(0.25),
        ratio_high=pairs.ratio(0.75),
        target=row.target,
        goal=row.goal or row.text,
        gigabytes_per_second=rate,
        share_of_bandwidth=None if rate is None or limits is None else rate / limits.gigabytes_per_second,
    )


def verdict(figure: Figure, figures: list[Figure]) -> str:
    if figure.ratio >= figure.target:
        return "reached"
    instead = any(other.goal == figure.goal and other.ratio >= other.target for other in figures)
    return "reached instead" if instead else "missed"


def as_rows(figures: list[Figure]) -> list[dict[str, Any]]:
    return [asdict(figure) | {"verdict": verdict(figure, figures)} for figure in figures]

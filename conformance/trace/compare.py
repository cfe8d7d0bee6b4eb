"""Two attentions side by side: the first stage at which they part, each held against the float64 oracle.

Two targets run the cases of the suite, two checkpoints run layer by layer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from conformance.cases.compare import error_of
from conformance.cases.table import ALL_FEATURES, Case, kernel_cases, layer_cases
from conformance.dialects.explain import Answered, explanations
from conformance.dialects.of_case import in_dialects
from conformance.targets import Limits, NotATarget, Target, Unsupported, fit
from conformance.targets.frameworks import quick_to_compile, set_x64
from conformance.targets.worker import Stopped, Worker
from conformance.trace.models import (
    LayerWeights,
    Model,
    attention_of,
    comparable,
    compare_stage,
    layer_of,
    layer_traces,
)
from conformance.trace.stages import STAGES, Stages, backend_stages, target_stages


class Fault(Exception):
    """A side gave no answer, and why."""


@dataclass(frozen=True)
class Compared:
    """One stage. errors: of A and of B against the oracle, relative to its largest value; None where that side does not
    show the stage. between: A against B. reason: why the stage differs, empty where it does not.
    """

    stage: str
    shape: tuple[int, ...]
    errors: tuple[float | None, float | None]
    between: float | None
    reason: str = ""


@dataclass(frozen=True)
class Trace:
    """One case. fault: where a side gave no answer. explanation: the dialect that reproduces the side that differs."""

    case: str
    dtype: str
    names: tuple[str, str]
    compared: tuple[Compared, ...] = ()
    fault: str = ""
    explanation: str = ""
    arrays: tuple[Stages, Stages] = field(default=({}, {}), repr=False)

    @property
    def first(self) -> Compared | None:
        """The first stage that differs."""
        return next((stage for stage in self.compared if stage.reason), None)

    @property
    def same(self) -> bool:
        return not self.fault and self.first is None


# --- the two sides ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackendSide:
    """One of our own three, in this process: a layer or a kernel, as the other side is (`kernel` is None)."""

    name: str
    kernel: bool | None = None
    limits: Limits = field(default_factory=Limits)

    def stages(self, case: Case, dtype: str, kernel: bool) -> Stages:
        importlib.import_module(f"gqa_{self.name}")  # before JAX is told about float64
        set_x64(dtype != "float32")
        return backend_stages(self.name, case, dtype, dtype, kernel)


@dataclass(frozen=True)
class TargetSide:
    """A target, in a process of its own. kernel: whether it is a function."""

    name: str
    worker: Worker
    kernel: bool
    limits: Limits

    def stages(self, case: Case, dtype: str, kernel: bool) -> Stages:
        """Raises Unsupported, and Fault where it fails to answer."""
        try:
            [(kind, found)] = self.worker.do(_answer, case, dtype)
        except (Stopped, RuntimeError) as error:
            raise Fault(f"{self.name} {error}") from error
        if kind == "unsupported":
            raise Unsupported(f"{self.name}: {found}")
        if kind == "fault":
            raise Fault(f"{self.name} {found}")
        stages: Stages = found
        return stages


Side = BackendSide | TargetSide


def target_side(worker: Worker) -> TargetSide:
    """The target of a worker that has started."""
    return TargetSide(worker.path, worker, worker.kind != "class", worker.limits)


def _answer(target: Target, case: Case, dtype: str) -> Iterator[tuple[str, Any]]:
    set_x64(dtype != "float32")
    try:
        if not target.limits.takes_dtype(dtype):
            raise Unsupported(f"takes no {dtype}")
        yield "stages", target_stages(target, case, dtype)
    except (Unsupported, NotImplementedError) as reason:
        yield "unsupported", str(reason)
    except Exception as error:
        yield "fault", f"raised {type(error).__name__}: {error}"


# --- comparison ------------------------------------------------------------------------------------------------------


def shared_cases(sides: tuple[Side, Side], kernel: bool | None = None) -> tuple[bool, list[Case]]:
    """Whether functions are compared, and the cases. Raises NotATarget for a function and a class."""
    kinds = {side.kernel for side in sides if side.kernel is not None} | ({kernel} - {None})
    if len(kinds) > 1:
        raise NotATarget(f"trace: {sides[0].name} and {sides[1].name}: a function and a class have no case in common")
    functions = kinds == {True}
    return functions, kernel_cases() if functions else layer_cases()


def traces(sides: tuple[Side, Side], case_name: str | None, dtype: str, kernel: bool | None = None) -> Iterator[Trace]:
    """The named case, or every feature of one grouping. A case that a side does not support is left out; the named one
    then raises Unsupported. Raises ValueError where there is no such case.
    """
    functions, cases = shared_cases(sides, kernel)
    if case_name is None:
        chosen = [case for case in cases if case.grouping == ALL_FEATURES]
    else:
        chosen = [case for case in cases if case_name in (case.name, _fitted_name(case, sides, functions))][:1]
    if not chosen:
        kind = "function" if functions else "class"
        raise ValueError(f"case: no case of a {kind} is called {case_name!r}; the first is {cases[0].name!r}")
    for case in chosen:
        try:
            yield trace(sides, case, dtype, functions)
        except Unsupported:
            if case_name is not None:
                raise


def _fitted_name(case: Case, sides: tuple[Side, Side], functions: bool) -> str:
    """The case's name once it is fitted to the sides: without grouped heads it is MHA."""
    try:
        for side in sides:
            case = fit(case, side.limits, layer=not functions)
    except Unsupported:
        pass
    return case.name


def trace(sides: tuple[Side, Side], case: Case, dtype: str, kernel: bool) -> Trace:
    """One case. Raises Unsupported where a side does not support it."""
    quick_to_compile()
    names = (sides[0].name, sides[1].name)
    for side in sides:
        case = fit(case, side.limits, layer=not kernel)
    try:
        found = (sides[0].stages(case, dtype, kernel), sides[1].stages(case, dtype, kernel))
    except Fault as fault:
        return Trace(case.name, dtype, names, fault=str(fault))
    oracle = backend_stages("numpy", case, dtype, "float64", kernel)
    plain = oracle if dtype == "float64" else backend_stages("numpy", case, dtype, dtype, kernel)
    compared = tuple(
        _compared(stage, oracle, plain, found, names, dtype)
        for stage in STAGES
        if stage in oracle and (stage in found[0] or stage in found[1])
    )
    result = Trace(case.name, dtype, names, compared, arrays=found)
    return result if result.same else replace(result, explanation=_explained(result, case, kernel))


def _compared(
    stage: str, oracle: Stages, plain: Stages, found: tuple[Stages, Stages], names: tuple[str, str], dtype: str
) -> Compared:
    errors: list[float | None] = [None, None]
    reasons = []
    for i, stages in enumerate(found):
        if stage in stages:
            errors[i], reason = compare_stage(stage, [oracle], [plain], [stages], dtype)
            reasons += [f"{names[i]}: {reason}"] if reason else []
    return Compared(stage, oracle[stage].shape, (errors[0], errors[1]), _apart(stage, *found), "; ".join(reasons))


def _explained(found: Trace, case: Case, kernel: bool) -> str:
    """What each side that differs computes instead, by name."""
    last, sentences = "context" if kernel else "output", []
    for i, name in enumerate(found.names):
        stages = found.arrays[i]
        wrong = any(c.reason and (c.errors[i] is not None) and f"{name}: " in c.reason for c in found.compared)
        if wrong and last in stages:
            size = case.B * case.config.num_heads * case.T * case.S
            answered = Answered(
                case.feature.name,
                found.dtype,
                case.feature.clause,
                size,
                in_dialects(case, found.dtype, kernel=kernel),
                (stages[last], stages.get("weights")),
            )
            [words] = explanations([answered])
            words = words if ": " in words else ""  # a factor or a rounding is no convention
            sentences += [f"{name} computes {words}"] if words else []
    return "; ".join(sentences)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def model_traces(a: Model, b: Model, backends: tuple[str, str], dtype: str) -> Iterator[Trace]:
    """One trace for each attention layer that both have, on the probe whose weights differ most. Raises ValueError
    where no input fits both.
    """
    widths = [attention_of(model)[0].embed_dim for model in (a, b)]
    if widths[0] != widths[1]:
        raise ValueError(f"trace: expected two models of one embed_dim, got {widths[0]} in A and {widths[1]} in B")
    for number in range(min(len(attention_of(a)), len(attention_of(b)))):
        yield _layer_trace(number, *comparable(layer_of(a, number), layer_of(b, number)), backends, dtype)


def _layer_trace(number: int, a: LayerWeights, b: LayerWeights, backends: tuple[str, str], dtype: str) -> Trace:
    oracle, plain, sides = layer_traces(a, b, backends, dtype)
    (one, first), (other, second) = sides.items()
    names, found = (one, other), (first, second)
    compared = []
    for stage in STAGES:
        held = [(name, traces) for name, traces in sides.items() if stage in traces[0] or stage in oracle[0]]
        if held:
            results = [(name, *compare_stage(stage, oracle, plain, traces, dtype)) for name, traces in held]
            reason = "; ".join(f"{name}: {reason}" for name, _, reason in results if reason)
            pairs = [_apart(stage, x, y) for x, y in zip(first, second, strict=True)]
            apart = max((pair for pair in pairs if pair is not None), default=None)
            shape = next(traces[0][stage].shape for traces in (*found, oracle) if stage in traces[0])
            compared.append(Compared(stage, shape, (results[0][1], results[1][1]), apart, reason))
    probe = max(range(len(found[0])), key=lambda i: _apart("weights", found[0][i], found[1][i]) or 0.0)
    return Trace(f"layer {number} attention", dtype, names, tuple(compared), arrays=(found[0][probe], found[1][probe]))


def _apart(stage: str, a: Stages, b: Stages) -> float | None:
    """How far B is from A at a stage; None where one does not show it or the shapes differ."""
    x, y = a.get(stage), b.get(stage)
    return None if x is None or y is None or x.shape != y.shape else error_of(y, x)

"""What lasts between calls: each state case makes a few calls and holds every result to the oracle."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.cases import inputs
from conformance.cases.compare import Difference, compare
from conformance.cases.inputs import Call
from conformance.cases.states import ROW, StateCase, name_of
from conformance.cases.table import ALL_FEATURES, Case, kernel_cases, layer_cases
from conformance.checks.check import Check
from conformance.checks.expected import kernel_expected, layer_expected
from conformance.targets import Target, TargetClass, Unsupported, fit
from conformance.targets.frameworks import Framework

Array = np.ndarray
LENGTHS = (5, 11, 5, 1, 70, 11)


@dataclass
class _Subject:
    """A function, or one layer of a class with its weights: what is called again and again."""

    target: Target
    dtype: str
    layer: Any = None
    weights: dict[str, Array] | None = None

    @classmethod
    def of(cls, target: Target, case: Case, dtype: str, seed: int = 0) -> _Subject:
        if not isinstance(target, TargetClass):
            return cls(target, dtype)
        layer, weights = target.layer(case.config, dtype), inputs.weights(case, dtype, seed)
        layer.load({name: x.copy() for name, x in weights.items()})
        return cls(target, dtype, layer, weights)

    def call(self, case: Case) -> Call:
        return (inputs.kernel_call if self.layer is None else inputs.layer_call)(case, self.dtype)

    def run(self, call: Call) -> Array:
        called: Any = self.target if self.layer is None else self.layer
        output: Array = called(call)[0]
        return output

    def fault(self, case: Case, call: Call, got: Array) -> Difference:
        if self.weights is None:
            expected = kernel_expected(self.dtype, call)
        else:
            expected = layer_expected(case, self.dtype, self.weights, call)
        return compare(got, expected.arrays[0], self.dtype, expected.allowed[0])


def state_checks(state: StateCase, dtype: str, target: Target) -> Iterator[Check | None]:
    """One case; yields None once the target has answered, as `target_checks` does."""

    def check(verdict: str, reason: str = "", error: float = 0.0) -> Check:
        return Check(ROW, name_of(state), f"{target.name}, {dtype}", "output", error, verdict, reason)

    try:
        if not target.limits.takes_dtype(dtype):
            raise Unsupported(f"takes no {dtype}")
        found = _KINDS[state.kind](target, _cases(state, target, dtype), dtype)
    except (Unsupported, NotImplementedError) as reason:
        yield check("unsupported", str(reason).split("\n")[0])
        return
    except Exception as error:
        yield check("fail", f"raised {type(error).__name__}: {error}", np.inf)
        return
    yield None
    yield check("fail" if found.reason else "pass", found.reason, found.error)


def _cases(state: StateCase, target: Target, dtype: str) -> list[Case]:
    """The cases of a state that the target supports; raises Unsupported where it supports none."""
    layer, reasons, found = isinstance(target, TargetClass), [], []
    table = {case.feature.name: case for case in _table(layer)}
    for name in state.layer_features if layer else state.features:
        try:
            case = fit(table[name], target.limits, layer=layer)
            _Subject.of(target, case, dtype)  # raises where it cannot be built
            found.append(case)
        except Unsupported as reason:
            reasons.append(str(reason))
    if not found:
        raise Unsupported(reasons[0])
    return found


def _table(layer: bool) -> list[Case]:
    return [case for case in (layer_cases() if layer else kernel_cases()) if case.grouping == ALL_FEATURES]


def _worst(differences: Iterator[Difference]) -> Difference:
    """The first fault, or the largest error."""
    worst = Difference(0.0)
    for difference in differences:
        if difference.reason:
            return difference
        worst = max(worst, difference, key=lambda found: found.error)
    return worst


# --- what is done between calls --------------------------------------------------------------------------------------


def _result_held(target: Target, cases: list[Case], dtype: str) -> Difference:
    """The first result, compared after the other calls."""
    first, subject = cases[0], _Subject.of(target, cases[0], dtype)
    call, others = subject.call(first), [replace(first, name=f"{first.name}, other numbers"), *cases[1:]]
    got = subject.run(call)
    for case in others:
        other = _Subject.of(target, case, dtype) if case.config != first.config else subject
        _attempt(other, case)
    return subject.fault(first, call, got)


def _settings_in_turn(target: Target, cases: list[Case], dtype: str) -> Difference:
    """Calls of equal shapes, one after the other; a class has one layer for each config."""
    subjects: dict[str, _Subject] = {}

    def found() -> Iterator[Difference]:
        for case in cases:
            subject = subjects.setdefault(repr(case.config), _Subject.of(target, case, dtype))
            call = subject.call(case)
            try:
                yield subject.fault(case, call, subject.run(call))
            except Unsupported:
                continue

    return _worst(found())


def _lengths_in_turn(target: Target, cases: list[Case], dtype: str) -> Difference:
    """One layer at several lengths, a short one again after a long one."""
    subject = _Subject.of(target, cases[-1], dtype)

    def found() -> Iterator[Difference]:
        for length in LENGTHS:
            keys = length if cases[-1].feature.square else length + 2
            case = replace(cases[-1], T=length, S=keys, name=f"{cases[-1].name}, {length} tokens")
            call = subject.call(case)
            difference = subject.fault(case, call, subject.run(call))
            yield replace(difference, reason=f"at {length} tokens: {difference.reason}" if difference.reason else "")

    return _worst(found())


def _layers_in_turn(target: Target, cases: list[Case], dtype: str) -> Difference:
    """Two layers of one class with weights of their own, built first and then called one after the other."""
    case = cases[0]
    subjects = [_Subject.of(target, case, dtype, seed) for seed in (0, 1)]
    call = subjects[0].call(case)
    return _worst(subject.fault(case, call, subject.run(call)) for subject in (*subjects, subjects[0]))


def _weights_changed(target: Target, cases: list[Case], dtype: str) -> Difference:
    """The arrays that a layer was loaded from are overwritten before it is called."""
    assert isinstance(target, TargetClass)
    case = cases[0]
    layer, weights = target.layer(case.config, dtype), inputs.weights(case, dtype)
    given = {name: x.copy() for name, x in weights.items()}
    layer.load(given)
    for x in given.values():
        x[...] = 1
    subject = _Subject(target, dtype, layer, weights)
    call = subject.call(case)
    return subject.fault(case, call, subject.run(call))


def _transposed(target: Target, cases: list[Case], dtype: str) -> Difference:
    """Equal numbers in the order (B, T, N, H) or (B, D, T) in memory."""
    swap = {"numpy": _swap_numpy, "torch": _swap_torch}
    return _settings_in_turn(_given_as(target, swap), cases, dtype)


def _strided(target: Target, cases: list[Case], dtype: str) -> Difference:
    """Equal numbers with a gap after each."""
    spread = {"numpy": lambda x: np.repeat(x, 2, axis=-1)[..., ::2], "torch": _spread_torch}
    return _settings_in_turn(_given_as(target, spread), cases, dtype)


def _inputs_changed(target: Target, cases: list[Case], dtype: str) -> Difference:
    """What was given is overwritten after the call, and the result is compared then."""
    given: list[Any] = []
    fill = {"numpy": lambda x: x.fill(7), "torch": lambda x: x.detach().fill_(7)}

    def keep(x: Any) -> Any:
        given.append(x)
        return x

    watched = _given_as(target, dict.fromkeys(fill, keep))
    subject = _Subject.of(watched, cases[0], dtype)
    call = subject.call(cases[0])
    got = subject.run(call)
    for x in given:
        if getattr(getattr(x, "flags", None), "writeable", True):
            fill[target.framework.name](x)
    return subject.fault(cases[0], call, got)


def _process(target: Target, cases: list[Case], dtype: str) -> Difference:
    """A call leaves the process as it was: grad mode, random numbers, default dtype, error state."""
    framework = replace(target.framework, call=_as_it_is, apply=_as_it_is) if target.framework.name == "torch" else None
    subject = _Subject.of(target if framework is None else replace(target, framework=framework), cases[0], dtype)
    call = subject.call(cases[0])
    subject.run(call)  # a first call may import and compile
    _draw()  # a state that is set to a number of the target's own is then another one
    before = _state()
    subject.run(call)
    changed = [name for name, value in _state().items() if value != before[name]]
    return Difference(np.inf, f"a call changes {', '.join(changed)}") if changed else Difference(0.0)


def _without_weights(target: Target, cases: list[Case], dtype: str) -> Difference:
    """need_weights=False gives the same output."""
    first = _Subject.of(target, cases[0], dtype)
    if "need_weights" not in (target if first.layer is None else first.layer).binding.named:
        raise Unsupported("takes no need_weights")

    def found() -> Iterator[Difference]:
        for case in cases:
            subject = _Subject.of(target, case, dtype)
            call = subject.call(case)
            without = replace(call, keywords=call.keywords | {"need_weights": False})
            try:
                difference = subject.fault(case, call, subject.run(without))
            except Unsupported:
                continue
            named = f"{case.feature.name}: {difference.reason}"
            yield replace(difference, reason=named if difference.reason else "")

    return _worst(found())


_KINDS: dict[str, Callable[[Target, list[Case], str], Difference]] = {
    "result held": _result_held,
    "settings in turn": _settings_in_turn,
    "lengths in turn": _lengths_in_turn,
    "layers in turn": _layers_in_turn,
    "transposed": _transposed,
    "strided": _strided,
    "inputs changed": _inputs_changed,
    "weights changed": _weights_changed,
    "process": _process,
    "without weights": _without_weights,
}


def _attempt(subject: _Subject, case: Case) -> None:
    try:
        subject.run(subject.call(case))
    except Unsupported:
        return


def _given_as(target: Any, change: Mapping[str, Callable[[Any], Any]]) -> Any:
    """The target, its floating arrays passed through `change`; frameworks without strides and views are left out."""
    framework: Framework = target.framework
    if framework.name not in change:
        raise Unsupported(f"arrays of {framework.name} have no strides and cannot be changed")

    def changed(x: Any) -> Any:
        floating = hasattr(x, "dtype") and getattr(x, "ndim", 0) > 1 and "float" in str(x.dtype)
        return change[framework.name](x) if floating else x

    def through(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda function, *args, **keywords: call(
            function, *map(changed, args), **{name: changed(x) for name, x in keywords.items()}
        )

    return replace(target, framework=replace(framework, call=through(framework.call), apply=through(framework.apply)))


def _swap_numpy(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(-3 % x.ndim, -2)).swapaxes(-3 % x.ndim, -2)


def _swap_torch(x: Any) -> Any:
    return x.transpose(-3 % x.ndim, -2).contiguous().transpose(-3 % x.ndim, -2)


def _spread_torch(x: Any) -> Any:
    return x.repeat_interleave(2, -1)[..., ::2]


def _as_it_is(function: Any, *args: Any, **keywords: Any) -> Any:
    return function(*args, **keywords)


def _draw() -> None:
    random.random()
    np.random.random()
    if "torch" in sys.modules:
        sys.modules["torch"].rand(1)


def _state() -> dict[str, Any]:
    """What a call might leave changed, by its name."""
    found: dict[str, Any] = {
        "random's state": random.getstate(),
        "NumPy's random state": str(np.random.get_state(legacy=False)),
        "NumPy's error state": np.geterr(),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["torch's grad mode"] = torch.is_grad_enabled()
        found["torch's random state"] = torch.get_rng_state().numpy().tobytes()
        found["torch's default dtype"] = str(torch.get_default_dtype())
    jax: Any = sys.modules.get("jax")
    if jax is not None:
        found["jax_enable_x64"] = jax.config.jax_enable_x64
    return found

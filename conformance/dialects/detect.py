"""Which conventions an attention follows: its answer to each probe is compared with those of every dialect that is
still possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np

from conformance.dialects.conventions import CONVENTION, CONVENTIONS, SPEC, Convention, Dialect
from conformance.dialects.probes import Probe, dropout_probe, overfull_probe, probes, training_probe
from conformance.dialects.remedies import REMEDIES
from conformance.dialects.runners import ClassRunner, FunctionRunner, Runner, runner_of
from conformance.targets import Target, Unsupported

Array = np.ndarray
TOLERANCE = 4e-3  # rounded projections and foreign RoPE tables stay within, other conventions far outside
UNDECIDED, OTHER = "cannot be told apart", "something else"


@dataclass(frozen=True)
class Finding:
    """One convention of a target. answer: the name of a choice, or UNDECIDED, OTHER. unsupported: why there is no
    answer. raised: what the target raised. evidence: what is known of an answer that has no name. ran: a remedy with
    which the target was seen to give the specification's answer. public: only such remedies are given.
    """

    convention: str
    answer: str = ""
    unsupported: str = ""
    raised: str = ""
    evidence: str = ""
    own_remedy: str = ""
    ran: str = ""
    public: bool = False

    @property
    def agrees(self) -> bool | None:
        """Whether it follows the specification; None where that is not known."""
        if self.unsupported or self.answer == UNDECIDED:
            return None
        return self.answer == CONVENTION[self.convention].spec

    @property
    def where(self) -> str:
        return self._of_choice("where")

    @property
    def remedy(self) -> str:
        """One that was run where there is one; for a target of the user's own also advice to its author."""
        return self.own_remedy or self.ran or ("" if self.public else self._of_choice("remedy"))

    def _of_choice(self, name: str) -> str:
        convention = CONVENTION[self.convention]
        named = [choice for choice in convention.others if choice.name == self.answer]
        return getattr(named[0], name) if named else ""


def dialect_of(findings: list[Finding]) -> Dialect:
    """The dialect that the findings name."""
    return frozenset(
        (f.convention, f.answer)
        for f in findings
        if f.answer in {other.name for other in CONVENTION[f.convention].others}
    )


def findings(target: Target) -> list[Finding]:
    """What the target does, for every convention, in the order of the table."""
    runner, known = runner_of(target), SPEC
    found: dict[str, Finding] = {}
    for name, about in groupby(probes(), lambda probe: probe.convention):
        found[name], known = _settle(runner, name, list(about), known, done=set(found))
    found["asking for weights"] = _two_paths(runner, known)
    found["returned weights"] = _returned(runner)
    found["full cache"] = _full(runner)
    return [found[convention.name] for convention in CONVENTIONS]


def _settle(runner: Runner, name: str, about: list[Probe], known: Dialect, done: set[str]) -> tuple[Finding, Dialect]:
    """The finding about one convention, and what is known after it."""
    answers, refusals, raised = [], [], []
    for probe in (probe.adapted_to(known) for probe in about):
        try:
            answers.append((probe, runner.run(probe, **_without_weights(runner))[0]))
        except (Unsupported, NotImplementedError) as refusal:
            refusals.append(str(refusal))
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}".split("\n")[0][:200])
    if not answers:
        if raised:
            return Finding(name, OTHER, raised=raised[0]), known
        return Finding(name, unsupported=refusals[-1]), known
    if name == "float64":
        return _float64(runner, answers, known), known
    rest = frozenset(pair for pair in known if pair[0] != name)
    fits = [d for d in _dialects(name, rest) if _fits(runner, answers, d)]
    if not fits:
        pairs = _pairs(name, rest, _not_yet_detected(runner, done))
        fits = list(islice((d for d in pairs if _fits(runner, answers, d)), 1))
    if not fits:
        return Finding(name, OTHER, evidence=_evidence(runner, name, rest, answers)), known
    if len(fits) == len(CONVENTION[name].choices):
        return Finding(name, UNDECIDED), known
    answer = dict(fits[0]).get(name, CONVENTION[name].spec)
    return Finding(name, answer, ran=_remedy(runner, (name, answer), about, fits[0])), fits[0]


def _remedy(runner: Runner, pair: tuple[str, str], about: list[Probe], known: Dialect) -> str:
    """The remedy for an answer, if with it the target answers these probes as the specification says; else ""."""
    remedy = REMEDIES.get(pair)
    if remedy is None:
        return ""
    rest, ran = known - {pair}, 0
    for probe in about:
        try:
            changed = remedy.before(probe).adapted_to(known)
            context = remedy.after(probe, runner.run(changed, **_without_weights(runner))[0])
        except (Unsupported, NotImplementedError):
            continue
        except Exception:  # the remedy does not work
            return ""
        ran += 1
        if not _close(context, runner.expected(probe.adapted_to(rest), rest)):
            return ""
    return remedy.code if ran else ""


def _dialects(name: str, known: Dialect) -> Iterator[Dialect]:
    """Every choice of one convention on top of what is known, the specification's first."""
    yield known
    for other in CONVENTION[name].others:
        yield known | {(name, other.name)}


def _not_yet_detected(runner: Runner, done: set[str]) -> list[Convention]:
    """The conventions that are still open."""
    return [c for c in CONVENTIONS if c.name not in done and not (c.layer and isinstance(runner, FunctionRunner))]


def _pairs(name: str, known: Dialect, open_conventions: list[Convention]) -> Iterator[Dialect]:
    """The same together with one alternative of another convention."""
    others = [convention for convention in open_conventions if convention.name != name]
    together = [known | {(convention.name, other.name)} for convention in others for other in convention.others]
    yield from together
    for dialect in together:
        yield from list(_dialects(name, dialect))[1:]


def _fits(runner: Runner, answers: list[tuple[Probe, Array]], dialect: Dialect) -> bool:
    return all(_close(answer, runner.expected(probe, dialect)) for probe, answer in answers)


def _close(a: Any, b: Any) -> bool:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return a.shape == b.shape and np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _without_weights(runner: Runner) -> dict[str, Any]:
    """The keyword that leaves the weights out, where there is one: what weights change is a finding of its own."""
    return {"need_weights": False} if _takes_need_weights(runner) else {}


def _takes_need_weights(runner: Runner) -> bool:
    takes = runner.target.binding if isinstance(runner, FunctionRunner) else runner.target.call_binding
    return takes is not None and takes.takes("need_weights")


def _float64(runner: Runner, answers: list[tuple[Probe, Array]], known: Dialect) -> Finding:
    """By the size of the error alone: roundings to float32 differ from implementation to implementation."""
    probe, answer = answers[0]
    expected = runner.expected(probe, known)
    if answer.dtype != np.float64 or not _close(answer, expected):
        return Finding("float64", OTHER, evidence=f"returns {answer.dtype}")
    return Finding("float64", "computed in float64" if np.abs(answer - expected).max() < 1e-12 else "float32 inside")


def _two_paths(runner: Runner, known: Dialect) -> Finding:
    """Whether asking for weights changes the context."""
    name = "asking for weights"
    if not _takes_need_weights(runner):
        return Finding(name, unsupported="has one path")
    answer, compared = CONVENTION[name].spec, 0
    for probe in probes():
        if probe.convention not in ("empty row, boolean", "16-bit scores"):
            continue
        probe = probe.adapted_to(known)
        try:
            without, given = (runner.run(probe, need_weights=need) for need in (False, True))
        except Exception:  # reported with that convention
            continue
        compared += 1
        if not _close(without[0], given[0]):
            answer = "changes empty rows" if probe.convention.startswith("empty") else "changes 16-bit scores"
            break
    return Finding(name, answer) if compared else Finding(name, unsupported="returns no weights")


def _returned(runner: Runner) -> Finding:
    """Whether returned weights, of which dropout took half, still sum to one in every row."""
    name = "returned weights"
    try:
        if isinstance(runner, ClassRunner):
            weights = runner.run_training(training_probe())[1]
        else:
            weights = runner.run(dropout_probe())[1]
    except (Unsupported, NotImplementedError) as refusal:
        return Finding(name, unsupported=str(refusal))
    except Exception as error:
        return Finding(name, OTHER, raised=f"{type(error).__name__}: {error}".split("\n")[0][:200])
    if weights is None:
        return Finding(name, unsupported="returns no weights")
    if weights.ndim == 3:
        return Finding(name, "averaged over heads")
    sums = np.asarray(weights, np.float64).sum(axis=-1)
    return Finding(name, "before dropout" if np.allclose(sums, 1, atol=TOLERANCE) else "after dropout")


def _full(runner: Runner) -> Finding:
    """What a cache does with one token more than it has slots for."""
    name, probe = "full cache", overfull_probe()
    if isinstance(runner, FunctionRunner):
        return Finding(name, unsupported="a layer's probe")
    capacity = len(probe.chunks) - 1
    try:
        runner.run_cached(replace(probe, chunks=probe.chunks[:-1]), capacity=capacity, ends=True)
    except (Unsupported, NotImplementedError) as refusal:
        return Finding(name, unsupported=str(refusal))
    except Exception as error:
        return Finding(name, OTHER, raised=f"{type(error).__name__}: {error}".split("\n")[0][:200])
    try:
        output, _ = runner.run_cached(probe, capacity=capacity, ends=True)
    except Exception:
        return Finding(name, CONVENTION[name].spec)
    return Finding(name, CONVENTION[name].spec if np.isnan(output[:, :, -1]).all() else "goes on without an error")


def _evidence(runner: Runner, name: str, known: Dialect, answers: list[tuple[Probe, Array]]) -> str:
    """The choices that single probes fit, where they disagree; else the first answer that fits none, as a picture."""
    names = []
    for probe, answer in answers:
        fits = [d for d in _dialects(name, known) if _fits(runner, [(probe, answer)], d)]
        if not fits:
            return _picture(answer)
        names.append(dict(fits[0]).get(name, CONVENTION[name].spec))
    return "differs from call to call: " + "; ".join(dict.fromkeys(names))


def _picture(context: Array) -> str:
    """The weights of the first head, as a picture."""
    rows = np.asarray(context[0, 0], np.float64)
    return "\n".join(" ".join("nan" if np.isnan(x) else f"{x:.2f}"[-3:] for x in row) for row in rows)

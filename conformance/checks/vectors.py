"""The cases as files, for implementations in any language; and a folder of answers, judged as a target is.

A case in one dtype is one safetensors file: its inputs by the names of the call, what is expected as
`expected.output` and `expected.weights`, a layer's weights as `weights.NAME`, and in its metadata the settings. Its
name is the case's. `cases.json` lists them with the bounds of SPEC 15, by the schema in `schema.json`. An answer is a
file of the same name with `output`, and `weights` where there are any; a case without one is not supported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from conformance.cases import inputs
from conformance.cases.compare import Difference, compare
from conformance.cases.inputs import DTYPES, Call
from conformance.cases.table import Case, kernel_cases, layer_cases
from conformance.checks.check import QUANTITIES, Check, unsupported, verdict
from conformance.checks.expected import Expected, kernel_expected, layer_expected
from conformance.checks.judge import Judged, explained
from conformance.targets import Limits, NotATarget
from conformance.targets.binding import NAMES
from gqa_weights.checkpoint import open_checkpoint

Array = np.ndarray
SCHEMA_VERSION = 1
MODERATE = 12_000  # pairs of a query and a key: larger cases are left out, so that the set stays below 10 MB
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Cases of the gqa conformance suite",
    "type": "object",
    "required": ["schema_version", "cases"],
    "properties": {
        "schema_version": {"const": SCHEMA_VERSION},
        "cases": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "file", "kind", "dtype", "clause", "guards", "settings", "allowed"],
                "properties": {
                    "name": {"type": "string"},
                    "file": {"type": "string", "description": "inputs and expected values, safetensors"},
                    "kind": {"enum": ["function", "layer"]},
                    "dtype": {"enum": list(DTYPES)},
                    "clause": {"type": "integer", "description": "of SPEC.md"},
                    "guards": {"type": "string", "description": "the fault that the case is there to catch"},
                    "settings": {
                        "type": "object",
                        "description": "causal, window, chunk, offset, scale, softcap; "
                        "of a layer the fields of its config",
                    },
                    "allowed": {
                        "type": "object",
                        "description": "of each quantity: the largest error, relative to the largest expected value",
                        "additionalProperties": {"type": "number"},
                    },
                },
            },
        },
    },
}


def write_vectors(folder: Path, *, dtypes: tuple[str, ...] = ("float32",), layers: bool = False) -> int:
    """Writes the cases of functions, and of layers where they are wanted.

    Args:
        folder: made if it is not there.
        dtypes: those to write each case in.
        layers: whether the cases of a layer are written too, with its weights.

    Returns:
        How many files of cases were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for case, kernel in _cases(layers):
        for dtype in dtypes:
            found = _vector(case, dtype, kernel)
            if found is not None:
                row, arrays, metadata = found
                (folder / row["file"]).write_bytes(save(arrays, metadata))
                rows.append(row)
    (folder / "schema.json").write_text(json.dumps(SCHEMA, indent=1) + "\n", encoding="utf-8")
    stored = {"schema_version": SCHEMA_VERSION, "cases": rows}
    (folder / "cases.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return len(rows)


def judge_answers(folder: Path) -> Judged:
    """Judges a folder of answers.

    Args:
        folder: files named as those of `write_vectors`.

    Raises:
        NotATarget: where there is no folder, or no answer in it.
    """
    files = {path.name for path in folder.glob("*.safetensors")} if folder.is_dir() else set()
    known = {file_of(case, dtype, kernel): (case, dtype, kernel) for case, kernel in _cases(True) for dtype in DTYPES}
    if not files & known.keys():
        raise NotATarget(f"--answers {folder}: expected files named as those of `gqa vectors`, found none")
    checks: list[Check] = []
    for kernel in (True, False):
        kinds = [(case, dtype) for name, (case, dtype, of) in known.items() if of == kernel and name in files]
        dtypes = {dtype for _, dtype in kinds}
        found = [
            check
            for name, (case, dtype, of) in known.items()
            if of == kernel and dtype in dtypes
            for check in _judged(folder, name if name in files else None, case, dtype, kernel)
        ]
        target = _Folder("function" if kernel else "class")
        checks += explained(str(folder), found, list(kinds), target) if kinds else []
    return Judged(checks)


class _Folder:
    """What an explanation must know of a folder of answers."""

    def __init__(self, kind: str) -> None:
        self.kind, self.limits = kind, Limits()


def file_of(case: Case, dtype: str, kernel: bool) -> str:
    """The name of a case's file."""
    words = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
    return f"{words}.{'function' if kernel else 'layer'}.{dtype}.safetensors"


def _cases(layers: bool) -> Iterator[tuple[Case, bool]]:
    yield from ((case, True) for case in kernel_cases() if case.pairs < MODERATE)
    if layers:
        yield from ((case, False) for case in layer_cases() if case.pairs < MODERATE)


def _call(case: Case, dtype: str, kernel: bool) -> Call:
    with np.errstate(over="ignore"):
        return (inputs.kernel_call if kernel else inputs.layer_call)(case, dtype)


def _vector(case: Case, dtype: str, kernel: bool) -> tuple[dict[str, Any], dict[str, Array], dict[str, str]] | None:
    """The row of `cases.json`, the arrays, and the metadata; None where the numbers do not fit the dtype."""
    call = _call(case, dtype, kernel)
    given = [x for x in call.arguments[:3] if x is not None]
    if not case.feature.poison and not all(np.isfinite(x.astype(np.float64)).all() for x in given):
        return None
    expected = _expected(case, dtype, kernel, call)
    named = dict(zip(NAMES, call.arguments, strict=True)) | call.keywords
    arrays = {name: x for name, x in named.items() if isinstance(x, Array)}
    settings = {name: x for name, x in named.items() if x is not None and not isinstance(x, Array)}
    if not kernel:
        settings |= {"config": case.config.to_dict()}
        arrays |= {f"weights.{name}": x for name, x in inputs.weights(case, dtype).items()}
    kind = np.float64 if dtype == "float64" else np.float32  # for the reader: answers are held against the oracle
    arrays |= {f"expected.{name}": x.astype(kind) for name, x in zip(QUANTITIES, expected.arrays, strict=True)}
    row = {
        "name": case.name,
        "file": file_of(case, dtype, kernel),
        "kind": "function" if kernel else "layer",
        "dtype": dtype,
        "clause": case.feature.clause,
        "guards": case.feature.guards,
        "settings": settings,
        "allowed": dict(zip(QUANTITIES, map(float, expected.allowed), strict=True)),
    }
    metadata = {"name": case.name} | {name: json.dumps(x) for name, x in settings.items()}
    return row, {name: np.ascontiguousarray(x) for name, x in arrays.items()}, metadata


def _expected(case: Case, dtype: str, kernel: bool, call: Call) -> Expected:
    if kernel:
        return kernel_expected(dtype, call)
    return layer_expected(case, dtype, inputs.weights(case, dtype), call)


def _judged(folder: Path, name: str | None, case: Case, dtype: str, kernel: bool) -> Iterable[Check]:
    column = f"{folder}, {dtype}"
    if name is None:
        return [unsupported(case, column, quantity, "no answer") for quantity in QUANTITIES]
    try:
        stored = open_checkpoint(folder / name)
        got = tuple(np.asarray(stored[q]) if q in stored else None for q in QUANTITIES)
    except (OSError, ValueError, TypeError) as error:
        return [verdict(case, column, "output", Difference(np.inf, f"cannot be read: {error}".split("\n")[0]))]
    if got[0] is None:
        return [verdict(case, column, "output", Difference(np.inf, f"has no tensor 'output', but {', '.join(stored)}"))]
    expected = _expected(case, dtype, kernel, _call(case, dtype, kernel))
    checks = []
    for quantity, x, oracle, allowed in zip(QUANTITIES, got, expected.arrays, expected.allowed, strict=True):
        if x is None:
            checks.append(unsupported(case, column, quantity, "returns none"))
            continue
        found = compare(x, oracle, dtype, allowed)
        check = verdict(case, column, quantity, found)
        checks.append(replace(check, answer=got) if found.reason and x.shape == oracle.shape else check)
    return checks

"""The power of the suite, measured: which cases catch which planted bug. The correct textbook must pass them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gqa_numpy
from conformance import inputs
from conformance.cases import KERNEL_ROWS, Case, kernel_cases, layer_cases
from conformance.compare import compare
from conformance.planted import KERNELS, LAYERS
from conformance.textbook import Textbook
from conformance.textbook_layer import TextbookLayer


@dataclass(frozen=True)
class Kill:
    """One planted bug, what it is, how many cases it was shown, and those that caught it."""

    bug: str
    what: str
    shown: int
    caught_by: tuple[str, ...]


def kill_table() -> list[Kill]:
    """Every planted bug against the cases; float64, the NumPy wing as oracle."""
    kernels, layers = kernel_references(), layer_references()
    rows = [_kill(bug, _kernel_catches(bug(), kernels), len(kernels)) for bug in KERNELS]
    return rows + [_kill(bug, _layer_catches(bug, layers), len(layers)) for bug in LAYERS]


def innocents() -> list[Kill]:
    """The same cases against the textbook code without any bug: what they catch is a false alarm."""
    kernels, layers = kernel_references(), layer_references()
    return [
        _kill(Textbook, _kernel_catches(Textbook(), kernels), len(kernels)),
        _kill(TextbookLayer, _layer_catches(TextbookLayer, layers), len(layers)),
    ]


Reference = tuple[Case, inputs.Call, Any]


def kernel_references() -> list[Reference]:
    called = [(case, inputs.kernel_call(case, "float64")) for case in kernel_cases()]
    attention = gqa_numpy.grouped_query_attention
    return [(case, c, attention(*c.arguments, **c.keywords)) for case, c in called]


def layer_references() -> list[Reference]:
    """The cases that need a layer to show: RoPE, norms, biases."""
    references = []
    for case in layer_cases():
        if case.feature.layer and case.grouping in KERNEL_ROWS:
            layer = gqa_numpy.GroupedQueryAttention.from_config(case.config).eval()
            layer.load_weights(inputs.weights(case, "float64"))
            c = inputs.layer_call(case, "float64")
            references.append((case, c, layer(*c.arguments, **c.keywords)))
    return references


def _kernel_catches(kernel: Any, references: Iterable[Reference]) -> Iterable[str]:
    for case, c, expected in references:
        if _differs(kernel(*c.arguments, **c.keywords), expected):
            yield case.name


def _layer_catches(layer: Any, references: Iterable[Reference]) -> Iterable[str]:
    for case, c, expected in references:
        planted = layer(case.config).load_weights(inputs.weights(case, "float64"))
        if _differs(planted(*c.arguments, **c.keywords), expected):
            yield case.name


def _differs(got: Any, expected: Any) -> bool:
    return any(compare(g, e, "float64", 1e-12).reason for g, e in zip(got, expected, strict=True))


def _kill(bug: type, catches: Iterable[str], shown: int) -> Kill:
    return Kill(bug.__name__, (bug.__doc__ or "").split("\n")[0], shown, tuple(catches))

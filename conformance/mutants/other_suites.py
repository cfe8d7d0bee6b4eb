"""The mutants against the tests that other projects have of their attention, in their sizes and tolerances.

onnx: the node tests of the Attention operator, from the installed package, with their own expected arrays. torch: the
samples of scaled_dot_product_attention in `torch.testing._internal.common_methods_invocations` (batch 4, 4 heads,
3 queries, 6 keys, head size 8; causal or not, dropout 0 or 0.5, one additive mask), tolerance of assert_close. jax: the
cases of `tests/nn_test.py` (batch 2, 4 heads over 4, 2 and 1, head size 32; bias, causal, padding, a causal mask, a
window), tolerance 0.01. jax's lengths of 128 are 16 here, because the reference is five loops: that hides no mutant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from conformance.mutants import MUTANTS
from conformance.reference.gradients import ReferenceGradients
from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


@dataclass(frozen=True)
class OtherCase:
    """One test of another suite. expected: None where that suite compares with a reference of its own."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    expected: Any = None
    rtol: float = 0.0
    atol: float = 0.0


def catches(suite: str, family: str, mutants: tuple[type, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Mutant (of the whole family, unless some are given) -> the tests of the suite that catch it, among those that
    correct code passes.
    """
    right, cases = _RUN[family](_RIGHT[family]), SUITES[suite]()
    fair = [case for case in cases if case.expected is None or _passes(case, right(case))]
    truth = {case.name: case.expected if case.expected is not None else right(case) for case in fair}
    found = {}
    for mutant in mutants or MUTANTS[family]:
        run = _RUN[family](mutant)
        found[mutant.__name__] = tuple(c.name for c in fair if not _close(run(c), truth[c.name], c))
    return found


def usable(suite: str) -> tuple[int, int]:
    """How many tests of the suite a kernel without weights can run, and how many there are."""
    right, cases = _RUN["kernel"](ReferenceKernel), SUITES[suite]()
    return sum(case.expected is None or _passes(case, right(case)) for case in cases), _TOTAL[suite]()


def _run_kernel(mutant: Any) -> Callable[[OtherCase], list[Array]]:
    def run(case: OtherCase) -> list[Array]:
        try:
            return [mutant()(*case.arguments, **case.keywords)[0]]
        except (IndexError, ValueError):  # such a mutant does not run at all on these shapes
            return []

    return run


def _run_gradients(mutant: Any) -> Callable[[OtherCase], list[Array]]:
    def run(case: OtherCase) -> list[Array]:
        query, value = case.arguments[0], case.arguments[2]
        d_context = np.random.default_rng(1).normal(size=(*query.shape[:3], value.shape[3]))
        found = mutant()(d_context, *case.arguments, **case.keywords)
        return [found[name] for name in sorted(found)]

    return run


_RIGHT: dict[str, type] = {"kernel": ReferenceKernel, "gradients": ReferenceGradients}
_RUN = {"kernel": _run_kernel, "gradients": _run_gradients}


def _passes(case: OtherCase, got: list[Array]) -> bool:
    return _close(got, case.expected, case)


def _close(got: list[Array], expected: list[Array], case: OtherCase) -> bool:
    return len(got) == len(expected) and all(
        g.shape == e.shape and np.allclose(g, e, rtol=case.rtol, atol=case.atol, equal_nan=True)
        for g, e in zip(got, expected, strict=True)
    )


# --- onnx ------------------------------------------------------------------------------------------------------------


def _onnx_nodes() -> list[Any]:
    """The test cases of the Attention operator that are not twins expanded into other operators."""
    import onnx.backend.test.case.node as nodes

    setattr(nodes, "_TargetOpType", "Attention")  # noqa: B010  (a private name, which the type checker takes for None)
    import onnx.backend.test.case.node.attention  # noqa: F401  (registers its cases when imported)

    return [case for case in nodes._NodeTestCases if not case.name.endswith("_expanded")]


@cache
def onnx_cases() -> tuple[OtherCase, ...]:
    """Those whose every input and attribute the kernel has an argument for."""
    return tuple(filter(None, map(_onnx_case, _onnx_nodes())))


def _onnx_case(case: Any) -> OtherCase | None:
    from onnx.helper import get_attribute_value

    (inputs, outputs), node = case.data_sets[0], case.model.graph.node[0]
    given = dict(zip([slot for slot, name in zip(_ONNX_INPUTS, node.input, strict=False) if name], inputs, strict=True))
    attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    if given.keys() - {"Q", "K", "V", "attn_mask", "past_key", "past_value"} or attributes.keys() - _ONNX_ATTRIBUTES:
        return None
    if any(str(x.dtype) not in ("float32", "bool") for x in given.values()):
        return None
    heads = {
        "Q": attributes.get("q_num_heads"),
        "K": attributes.get("kv_num_heads"),
        "V": attributes.get("kv_num_heads"),
    }
    query, key, value = (_four_axes(np.asarray(given[name], np.float64), heads[name]) for name in "QKV")
    past = given["past_key"].shape[2] if "past_key" in given else 0
    if past:
        key = np.concatenate([given["past_key"], key], axis=2)
        value = np.concatenate([given["past_value"], value], axis=2)
    mask = given.get("attn_mask")
    if mask is not None:
        mask = mask if mask.ndim == 2 else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        if mask.shape[-1] != key.shape[2]:
            return None
        mask = mask if mask.dtype == bool else mask.astype(np.float64)
    keywords: dict[str, Any] = {"causal": bool(attributes.get("is_causal", 0)), "offset": past}
    keywords |= {name: attributes[name] for name in ("scale", "softcap") if attributes.get(name)}
    expected = [_four_axes(np.asarray(outputs[0], np.float64), heads["Q"])]
    return OtherCase(case.name, (query, key, value, mask), keywords, expected, rtol=1e-3, atol=1e-7)


_ONNX_INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
_ONNX_ATTRIBUTES = {"is_causal", "scale", "softcap", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode"}


def _four_axes(x: Array, heads: int | None) -> Array:
    """(B, length, heads * size) -> (B, heads, length, size)."""
    return x if x.ndim == 4 else np.stack(np.split(x, heads or 1, axis=2), axis=1)


# --- torch and jax ---------------------------------------------------------------------------------------------------


@cache
def torch_cases() -> tuple[OtherCase, ...]:
    return tuple(_torch_cases())


def _torch_cases() -> Iterator[OtherCase]:
    rng, (B, T, S, N, H) = np.random.default_rng(0), (4, 3, 6, 4, 8)
    for heads in (1, N):
        query, key, value = (rng.uniform(-9, 9, (B, heads, length, H)) for length in (T, S, S))
        kept = np.where(rng.random((B, heads, T, S)) < 0.5, 2.0, 0.0)
        for causal in (True, False):
            for name, multiplier in (("", {}), (", dropout", {"dropout_multiplier": kept})):
                settings = {"causal": causal, "offset": 0, **multiplier}
                yield OtherCase(
                    f"{heads} heads, causal={causal}{name}", (query, key, value), settings, None, 1e-7, 1e-7
                )
    yield OtherCase("attn_mask", (query, key, value, rng.uniform(-9, 9, (T, S))), {}, None, 1e-7, 1e-7)


@cache
def jax_cases() -> tuple[OtherCase, ...]:
    return tuple(_jax_cases())


def _jax_cases() -> Iterator[OtherCase]:
    rng, (B, T, N, H) = np.random.default_rng(0), (2, 16, 4, 32)
    query = rng.normal(size=(B, N, T, H))
    for group in (1, 2, 4):
        key, value = (rng.normal(size=(B, N // group, T, H)) for _ in range(2))
        yield OtherCase(f"groups of {group}", (query, key, value), {}, None, 0.01, 0.01)
    key, value = (rng.normal(size=(B, N, T, H)) for _ in range(2))
    bias, lower = rng.normal(size=(1, N, T, T)), np.tril(np.ones((1, 1, T, T), bool))
    lengths, queries = np.array([T // 4, T // 2]), np.array([T // 2, T // 4])
    padding = (np.arange(T) < lengths[:, None])[:, None, None] & (np.arange(T) < queries[:, None])[:, None, :, None]
    modes: dict[str, tuple[Any, dict[str, Any]]] = {
        "bias": (bias, {}),
        "causal": (None, {"causal": True}),
        "padding": (padding, {}),
        "custom": (lower, {}),
        "causal, padding": (padding, {"causal": True}),
        "custom, padding": (lower & padding, {}),
        "bias, causal": (bias, {"causal": True}),
        "causal, sliding_window": (None, {"causal": True, "window": 4}),
    }
    for name, (mask, settings) in modes.items():
        yield OtherCase(name, (query, key, value, mask), settings, None, 0.01, 0.01)


SUITES: dict[str, Callable[[], tuple[OtherCase, ...]]] = {"onnx": onnx_cases, "torch": torch_cases, "jax": jax_cases}
_TOTAL: dict[str, Callable[[], int]] = {
    "onnx": lambda: len(_onnx_nodes()),
    "torch": lambda: len(torch_cases()),
    "jax": lambda: len(jax_cases()),
}


def installed_suites() -> tuple[str, ...]:
    """onnx ships its tests; those of torch and jax are rebuilt here."""
    return tuple(suite for suite in SUITES if suite != "onnx" or find_spec("onnx") is not None)

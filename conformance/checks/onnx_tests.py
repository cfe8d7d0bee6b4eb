"""The cases of a function as node tests of ONNX, for the operator Attention: a folder each, as onnx's own have them.

`model.onnx` is one node; `test_data_set_0` holds `input_0.pb`, ... and `output_0.pb`. Causal is the attribute
`is_causal`, with the keys before the queries' own as the past; what else hides keys is written as a mask.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases import inputs
from conformance.cases.inputs import Call
from conformance.cases.table import Case, kernel_cases
from conformance.checks.expected import kernel_expected
from conformance.checks.vectors import MODERATE
from gqa_spec.packages import not_installed

Array = np.ndarray
OPSET, IR_VERSION = 23, 11
INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value")
OUTPUTS = ("Y", "present_key", "present_value")
NOT_SAID = {
    "sinks": "the operator has no sinks",
    "dropout_multiplier": "the operator has no dropout",
}


@dataclass
class Written:
    """count: how many node tests. left_out: why the operator cannot say the others, with counts."""

    count: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class NotSaid(Exception):
    """What the operator cannot say of a case."""


def write_onnx(folder: Path) -> Written:
    """Writes the node tests, in float32.

    Args:
        folder: made if it is not there.

    Returns:
        How many there are, and what was left out.

    Raises:
        ImportError: where onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(not_installed("onnx")) from error
    found = Written()
    for case in kernel_cases():
        if case.pairs >= MODERATE:
            found.left_out["larger than the other files allow"] += 1
            continue
        try:
            arrays, attributes, outputs = _said(case)
        except NotSaid as reason:
            found.left_out[str(reason)] += 1
            continue
        own = folder / ("test_attention_" + re.sub(r"[^a-z0-9]+", "_", case.name.lower()).strip("_"))
        data = own / "test_data_set_0"
        data.mkdir(parents=True, exist_ok=True)
        onnx.save(_model(arrays, attributes, outputs), own / "model.onnx")
        for i, (name, x) in enumerate(arrays.items()):
            onnx.save_tensor(onnx.numpy_helper.from_array(x, name), data / f"input_{i}.pb")
        for i, (name, x) in enumerate(zip(OUTPUTS, outputs, strict=False)):
            onnx.save_tensor(onnx.numpy_helper.from_array(x, name), data / f"output_{i}.pb")
        found.count += 1
    return found


def _said(case: Case) -> tuple[dict[str, Array], dict[str, Any], list[Array]]:
    """The inputs by name, the attributes, and the expected outputs. Raises NotSaid."""
    with np.errstate(over="ignore"):
        call = inputs.kernel_call(case, "float32")
    for name, reason in NOT_SAID.items():
        if name in call.keywords:
            raise NotSaid(reason)
    if case.feature.poison or not all(np.isfinite(x).all() for x in call.arguments[:3]):
        raise NotSaid("the operator says nothing of inf and NaN in its inputs")
    if case.feature.mask == "finfo.min":
        raise NotSaid("the operator does not clamp the sum of a score and a mask")
    attributes: dict[str, Any] = {name: call.keywords[name] for name in ("scale", "softcap") if name in call.keywords}
    mask = call.mask
    if call.keywords.get("causal") and case.T <= case.S and not {"window", "chunk", "offset"} & call.keywords.keys():
        attributes["is_causal"] = 1
        visible = _visible(case, call.keywords)
    else:
        visible = _visible(case, call.keywords)
        mask = _combined(mask, visible)
    if mask is not None:  # ONNX Runtime broadcasts B and N, not T and S
        mask = np.broadcast_to(mask, (*mask.shape[:-2], case.T, case.S))
        mask = mask if mask.dtype == bool else mask.astype(np.float32)
    seen = visible if mask is None else visible & (mask if mask.dtype == bool else ~np.isneginf(mask))
    if not seen.any(axis=-1).all():
        raise NotSaid("the operator does not say what a query without a key gives")
    past = case.S - case.T if "is_causal" in attributes else 0
    query, key, value = call.arguments[:3]
    parts: tuple[Array | None, ...] = (query, key[:, :, past:], value[:, :, past:], mask)
    parts = (*parts, key[:, :, :past], value[:, :, :past]) if past else parts
    arrays = {name: x for name, x in zip(INPUTS, parts, strict=False) if x is not None}
    expected = kernel_expected("float32", Call(*call.arguments, call.keywords)).arrays[0]
    outputs = [expected.astype(np.float32), key, value] if past else [expected.astype(np.float32)]
    return {n: np.ascontiguousarray(x) for n, x in arrays.items()}, attributes, outputs


def _visible(case: Case, keywords: Mapping[str, Any]) -> Array:
    """(1 or B, 1, T, S): what causal, window and chunk leave."""
    offset = np.atleast_1d(keywords.get("offset", case.S - case.T)).reshape(-1, 1, 1, 1)
    query, key = np.arange(case.T)[:, None] + offset, np.arange(case.S)
    seen = np.ones(np.broadcast(query, key).shape, bool)
    if keywords.get("causal"):
        seen &= key <= query
    if "window" in keywords:
        seen &= np.abs(query - key) < keywords["window"]
    if "chunk" in keywords:
        seen &= query // keywords["chunk"] == key // keywords["chunk"]
    return seen


def _combined(mask: Array | None, visible: Array) -> Array | None:
    if visible.all():
        return mask
    if mask is None or mask.dtype == bool:
        return visible if mask is None else visible & mask
    return np.where(visible, mask.astype(np.float32), np.float32(-np.inf))


def _model(arrays: Mapping[str, Array], attributes: Mapping[str, Any], outputs: list[Array]) -> Any:
    from onnx import helper

    last = 1 + max(INPUTS.index(name) for name in arrays)
    names = [name if name in arrays else "" for name in INPUTS[:last]]
    node = helper.make_node("Attention", names, list(OUTPUTS[: len(outputs)]), **attributes)
    given, results = (
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for name, x in pairs]
        for pairs in (arrays.items(), zip(OUTPUTS, outputs, strict=False))
    )
    graph = helper.make_graph([node], "attention", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

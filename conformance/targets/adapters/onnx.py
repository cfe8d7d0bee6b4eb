"""The ONNX operator Attention, by its reference evaluator and by ONNX Runtime, and ONNX Runtime's own
GroupQueryAttention. Each call is a model of one node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as states

from conformance.targets.protocol import Unsupported

Array = np.ndarray
REFERENCE_OPSET, RUNTIME_OPSET = 25, 24
NAMES = ("Q", "K", "V", "attn_mask", "past_key", "past_value")


def _model(
    operator: str,
    inputs: tuple[tuple[str, str], ...],
    outputs: tuple[str, ...],
    domain: str,
    opset: int,
    attributes: tuple[tuple[str, Any], ...],
) -> Any:
    node = helper.make_node(operator, [n for n, _ in inputs], list(outputs), domain=domain, **dict(attributes))
    types = {
        "bool": TensorProto.BOOL,
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
        "int32": TensorProto.INT32,
    }
    own = next(types[dtype] for _, dtype in inputs)
    taken = [helper.make_tensor_value_info(n, types[dtype], None) for n, dtype in inputs if n]
    given = [helper.make_tensor_value_info(n, own, None) for n in outputs if n]
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(helper.make_graph([node], "attention", taken, given), opset_imports=opsets, ir_version=11)


@cache
def _reference(*described: Any) -> Callable[[dict[str, Array]], Any]:
    evaluator = ReferenceEvaluator(_model(*described))
    return lambda fed: evaluator.run(None, fed)


@cache
def _session(*described: Any) -> Callable[[dict[str, Array]], list[Array]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(
            _model(*described).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (states.NotImplemented, states.InvalidGraph) as error:
        raise Unsupported(str(error).split("\n")[0]) from error
    return lambda fed: session.run(None, fed)


def _attention(run: Any, opset: int, arrays: tuple[Array | None, ...], attributes: dict[str, Any], past: bool) -> Any:
    """Y and the weights, by `qk_matmul_output_mode` 3. past: the keys before the last T are its past."""
    query, key, value, mask = arrays
    assert query is not None
    assert key is not None
    assert value is not None
    before = key.shape[2] - query.shape[2]
    if past and before < 0:
        raise Unsupported("every query brings its own key")
    new = before if past else 0
    parts = (query, key[:, :, new:], value[:, :, new:], mask, *((key[:, :, :new], value[:, :, :new]) if past else ()))
    fed = {name: np.ascontiguousarray(x) for name, x in zip(NAMES, parts, strict=False) if x is not None}
    attributes = {n: x for n, x in attributes.items() if x is not None} | {"qk_matmul_output_mode": 3}
    own = str(query.dtype)
    inputs = tuple((name if name in fed else "", str(fed[name].dtype) if name in fed else own) for name in NAMES)
    inputs = inputs if past else inputs[: 4 if mask is not None else 3]
    outputs = ("Y", "present_key", "present_value", "weights") if past else ("Y", "", "", "weights")
    found = run("Attention", inputs, outputs, "", opset, tuple(sorted(attributes.items())))(fed)
    return found[0], found[-1]


def reference(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    past: bool = False,
) -> tuple[Array, Array]:
    """The window is `left_window_size`, which counts the keys before the query's own."""
    attributes = {"is_causal": int(causal), "scale": scale, "softcap": softcap, "left_window_size": window}
    return _attention(_reference, REFERENCE_OPSET, (query, key, value, mask), attributes, past)


def runtime(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    past: bool = False,
) -> tuple[Array, Array]:
    attributes = {"is_causal": int(causal), "scale": scale, "softcap": softcap}
    if mask is not None:  # it broadcasts B and N, but not T
        mask = np.broadcast_to(mask, (*mask.shape[:-2], query.shape[2], key.shape[2]))
    return _attention(_session, RUNTIME_OPSET, (query, key, value, mask), attributes, past)


def runtime_gqa(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """com.microsoft.GroupQueryAttention: the last T keys are new, those before are its past."""
    (B, N, T, H), (_, K, S, _) = query.shape, key.shape
    if not causal:
        raise Unsupported("always causal")
    if T > S:
        raise Unsupported("every query brings its own key")
    past = S - T
    if past and T > 1 and B > 1:  # it takes new tokens on top of a past for one row at a time
        given: dict[str, Any] = {"window": window, "scale": scale, "softcap": softcap, "sinks": sinks}
        return np.concatenate(
            [runtime_gqa(query[b : b + 1], key[b : b + 1], value[b : b + 1], **given) for b in range(B)]
        )
    packed = [x.swapaxes(1, 2).reshape(B, T, -1) for x in (query, key[:, :, past:], value[:, :, past:])]
    empty = np.zeros(0, np.int32)
    fed: dict[str, Array] = dict(zip(("query", "key", "value"), packed, strict=True))
    fed |= {"past_key": key[:, :, :past], "past_value": value[:, :, :past]}
    fed |= {"seqlens_k": np.full(B, S - 1, np.int32), "total_sequence_length": np.array(S, np.int32)}
    inputs = [(name, str(x.dtype)) for name, x in fed.items()]
    if sinks is not None:
        inputs += [("", str(empty.dtype))] * 4 + [("head_sink", str(sinks.dtype))]
        fed["head_sink"] = sinks
    attributes = {"num_heads": N, "kv_num_heads": K, "scale": scale, "softcap": softcap, "local_window_size": window}
    settings = tuple(sorted((n, x) for n, x in attributes.items() if x is not None))
    outputs = ("output", "present_key", "present_value")
    run = _session("GroupQueryAttention", tuple(inputs), outputs, "com.microsoft", RUNTIME_OPSET, settings)
    output = run({name: np.ascontiguousarray(x) for name, x in fed.items()})[0]
    return output.reshape(B, T, N, H).swapaxes(1, 2)

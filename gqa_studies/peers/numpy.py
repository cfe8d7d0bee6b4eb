"""gqa_numpy against the onnx package's reference evaluator of the Attention operator."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from gqa_numpy import grouped_query_attention
from gqa_studies.peers import Peer
from gqa_studies.timed_call import TimedCall

Array = np.ndarray
OPSET = 23  # the first with Attention


class Calls:
    def __init__(self, case: TimedCall) -> None:
        self.query, self.key, self.value = case.arrays()
        self.evaluator = ReferenceEvaluator(_model(causal=case.T > 1))

    def ours(self) -> Array:
        return grouped_query_attention(self.query, self.key, self.value, causal=True, need_weights=False)[0]

    def onnx_reference(self) -> Array:
        outputs: Any = self.evaluator.run(None, {"query": self.query, "key": self.key, "value": self.value})
        return outputs[0]


def _model(causal: bool) -> object:
    """One Attention node. Its is_causal is aligned top-left: for T = S only."""
    names = ("query", "key", "value")
    node = helper.make_node("Attention", names, ["context"], is_causal=int(causal))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    outputs = [helper.make_tensor_value_info("context", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def to_numpy(x: Array) -> Array:
    return x.astype(np.float32)


PEERS = {"onnx reference evaluator": Peer(Calls.onnx_reference)}

"""Exported to ONNX: one Attention node a layer where the operator has what the layer needs, plain nodes elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_torch import GroupedQueryAttention, Transformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter
CONFIG = AttentionConfig(
    embed_dim=24, num_heads=6, num_kv_heads=2, head_dim=8, causal=True, rope=RopeConfig(), qk_norm="rms", qkv_bias=True
)
LAYERS: dict[str, tuple[dict[str, Any], int]] = {
    "causal": ({}, 1),
    "window, softcap, scale": ({"window": 4, "softcap": 2.0, "scale": 0.5}, 1),
    "value heads of another size": ({"causal": False, "v_head_dim": 5}, 0),
    "sinks": ({"sinks": True}, 0),
}


class ContextAlone(torch.nn.Module):
    """A layer as one that exports calls it: tensors in, one tensor out."""

    def __init__(self, layer: GroupedQueryAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, need_weights=False)[0]


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module.eval()


def exported(module: torch.nn.Module, x: torch.Tensor, name: str, path: Path) -> onnx.ModelProto:
    shapes = {name: {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}}
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, opset_version=23, verbose=False)
    assert program is not None
    program.save(path)
    return onnx.load(path)


def run(session: Any, x: torch.Tensor) -> np.ndarray:
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind, tmp_path):
    settings, attention_nodes = LAYERS[kind]
    module = drawn(ContextAlone(GroupedQueryAttention.from_config(replace(CONFIG, **settings))))
    model = exported(module, torch.randn(2, 7, 24), "x", tmp_path / "layer.onnx")
    assert Counter(node.op_type for node in model.graph.node)["Attention"] == attention_nodes
    session, reference = onnxruntime.InferenceSession(tmp_path / "layer.onnx"), ReferenceEvaluator(model)
    for B, T in ((2, 7), (3, 11), (1, 2)):
        x = torch.randn(B, T, 24)
        with torch.no_grad():
            wanted = module(x).numpy()
        given = {model.graph.input[0].name: x.numpy()}
        assert np.abs(run(session, x) - wanted).max() <= 2e-6 * np.abs(wanted).max()
        assert np.abs(np.asarray(reference.run(None, given)[0]) - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_a_model_says_what_torch_says(tmp_path):
    config = ModelConfig(
        attention=(CONFIG, replace(CONFIG, window=4), replace(CONFIG, sinks=True)), feed_forward_size=32, vocab_size=61
    )
    model = drawn(Transformer(config))
    prompt = torch.randint(61, (1, 5))
    graph = exported(model, torch.randint(61, (2, 7)), "tokens", tmp_path / "model.onnx").graph
    assert Counter(node.op_type for node in graph.node)["Attention"] == 2
    session, tokens = onnxruntime.InferenceSession(tmp_path / "model.onnx"), prompt
    for _ in range(8):
        tokens = torch.cat([tokens, torch.from_numpy(run(session, tokens))[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert tokens[:, 5:].tolist() == model.generate(prompt.tolist(), 8)


def test_asking_for_weights_exports_plain_nodes(tmp_path):
    layer = drawn(GroupedQueryAttention.from_config(CONFIG))
    model = exported(layer, torch.randn(2, 7, 24), "query", tmp_path / "layer.onnx")
    assert "Attention" not in {node.op_type for node in model.graph.node}
    assert len(model.graph.output) == 2

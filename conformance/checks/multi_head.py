"""K = N is multi-head attention: every backend against `torch.nn.MultiheadAttention`.

Outputs and per-head weights, atol 1e-8 and rtol 1e-5, weights moved through the layout of `gqa_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.cases.compare import EPSILON, error_of
from conformance.cases.inputs import DTYPES, Call
from conformance.checks.check import QUANTITIES, Check
from conformance.targets import Backend
from gqa_spec import AttentionConfig
from gqa_weights import LAYOUTS, to_canonical

Array = np.ndarray
ROW = "torch.nn.MultiheadAttention"


@dataclass(frozen=True)
class MultiHeadCase:
    """Sizes of one comparison. uniform: inputs from U(0, 1), else normal."""

    name: str
    B: int
    T: int
    embed_dim: int
    num_heads: int
    bias: bool
    dtype: str
    uniform: bool = False


COMPARISONS = (
    MultiHeadCase("batch 3, length 4, width 8, 2 heads", 3, 4, 8, 2, False, "float32", uniform=True),
    MultiHeadCase("batch 3, length 4, width 8, 2 heads, float64", 3, 4, 8, 2, False, "float64", uniform=True),
    MultiHeadCase("3 heads", 2, 7, 33, 3, False, "float64"),
    MultiHeadCase("3 heads with biases", 2, 7, 33, 3, True, "float64"),
    MultiHeadCase("7 heads", 5, 11, 91, 7, False, "float64"),
    MultiHeadCase("7 heads with biases", 5, 11, 91, 7, True, "float64"),
    MultiHeadCase("16 heads with biases", 3, 13, 80, 16, True, "float64"),
)


def mha_checks(dtype: str, backends: tuple[str, ...]) -> Iterator[Check]:
    for case in (case for case in COMPARISONS if case.dtype == dtype):
        x, foreign, expected = _multihead_attention(case)
        config = AttentionConfig(
            embed_dim=case.embed_dim, num_heads=case.num_heads, qkv_bias=case.bias, out_bias=case.bias
        )
        weights = to_canonical(LAYOUTS[ROW], foreign, config)
        for backend in backends:
            layer = Backend(backend).layer(config, case.dtype)
            layer.load(weights)
            got = layer(Call(x, None, None, None, {}))
            for i, quantity in enumerate(QUANTITIES):
                close = np.allclose(np.asarray(got[i]), expected[i], rtol=1e-5, atol=1e-8)
                units = error_of(np.asarray(got[i]), expected[i]) / EPSILON[case.dtype]
                reason = "" if close else "outside atol 1e-8, rtol 1e-5"
                verdict = "pass" if close else "fail"
                yield Check(ROW, case.name, f"{backend}, {case.dtype}", quantity, units, verdict, reason)


def _multihead_attention(case: MultiHeadCase) -> tuple[Array, dict[str, Array], tuple[Any, Any]]:
    """Inputs, the module's own state, and its output and weights per head."""
    import torch

    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(
        case.embed_dim, case.num_heads, bias=case.bias, batch_first=True, dtype=getattr(torch, case.dtype)
    )
    rng = np.random.default_rng(0)
    draw = rng.random if case.uniform else rng.standard_normal
    x = draw((case.B, case.T, case.embed_dim)).astype(DTYPES[case.dtype])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):  # PyTorch starts them at 0, where a bias left out makes no difference
                parameter.normal_()
        tensor = torch.from_numpy(x)
        output, weights = module(tensor, tensor, tensor, need_weights=True, average_attn_weights=False)
    state = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return x, state, (output.numpy(), weights.numpy())

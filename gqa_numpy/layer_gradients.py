"""The gradient of the attention layer, written by hand: projections, QK-norm and RoPE around the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from gqa_numpy import rope
from gqa_numpy.gradients import Gradients
from gqa_numpy.linear import gated, gated_vjp, join_heads, linear_vjp, split_heads
from gqa_numpy.norm import qk_norm_vjp
from gqa_spec import AttentionConfig

Array = np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerGradients:
    """What one pass of a layer keeps for its gradients.

    inputs: query, key and value. stages: as in `trace`. positions: by which RoPE rotated query and key.
    """

    config: AttentionConfig
    parameters: Mapping[str, Array]
    inputs: Mapping[str, Array]
    stages: Mapping[str, Array]
    context: Float[Array, "B N T Hv"]
    kernel_vjp: Callable[[Float[Array, "B N T Hv"]], Gradients]
    positions: Mapping[str, Array]
    rope_length: int

    def of(self, d_output: Float[Array, "B T D"]) -> Gradients:
        """The gradients of query, key, value, a floating mask and every weight, from that of the output."""
        gate = self.stages.get("gate")
        d_joined, gradients = self._projection("o_proj", join_heads(gated(self.context, gate)), d_output)
        d_context, d_gate = split_heads(d_joined, self.config.v_head_dim), None
        if gate is not None:
            d_context, d_gate = gated_vjp(self.context, gate, d_context)
        d_heads = self.kernel_vjp(d_context)
        gradients |= {name: d_heads[name] for name in ("mask", "sinks") if name in d_heads}
        for name in self.inputs:
            d_input, weights = self._heads(name, d_heads[name])
            gradients |= weights | {name: d_input}
        if d_gate is not None:
            d_input, weights = self._projection("gate_proj", self.inputs["query"], join_heads(d_gate))
            gradients |= weights | {"query": gradients["query"] + d_input}
        return gradients

    def _heads(self, name: str, d_heads: Array) -> tuple[Array, Gradients]:
        """From the gradient of query, key or value heads to that of the input, and of the weights between."""
        config, gradients, letter = self.config, {}, name[0]
        own = [stage for stage in self.stages if stage.startswith(f"{letter}_")]
        for before, stage in reversed(list(pairwise(own))):
            if stage == "q_scale" and config.query_scale is not None:
                d_heads = d_heads * rope.query_factor(self.positions[name], *config.query_scale, dtype=d_heads.dtype)
            if stage.endswith("_rope") and config.rope is not None:
                d_heads = rope.rotate_vjp(d_heads, self.positions[name], config.rope, self.rope_length)
            if stage.endswith("_norm") and config.qk_norm is not None:
                weight, eps = self.parameters[f"{stage}.weight"], config.qk_norm_eps
                d_heads, gradients[f"{stage}.weight"] = qk_norm_vjp(
                    self.stages[before], weight, config.qk_norm, eps, d_heads
                )
        d_input, weights = self._projection(f"{letter}_proj", self.inputs[name], join_heads(d_heads))
        return d_input, gradients | weights

    def _projection(self, name: str, x: Array, d_y: Array) -> tuple[Array, Gradients]:
        """The gradient of a projection's input, and those of its weight and bias."""
        d_x, d_weight, d_bias = linear_vjp(x, self.parameters[f"{name}.weight"], d_y)
        gradients = {f"{name}.weight": d_weight}
        if f"{name}.bias" in self.parameters:
            gradients[f"{name}.bias"] = d_bias
        return d_x, gradients

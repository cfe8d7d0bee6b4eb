"""The stages that an attention shows on a case, by our names and in our shapes.

Our backends show every stage. A function shows its weights (by value = identity where it returns none) and its
context. A class shows its output and weights, the stages of a method `trace(query, key, value, mask, ...)` if it has
one, and, where it is a torch module, what its submodules named like a stage (`q_proj`, `k_norm`, ...) give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from einops import rearrange

from conformance.cases import inputs
from conformance.cases.inputs import DTYPES, Call
from conformance.cases.table import Case
from conformance.checks.expected import in_dtype
from conformance.targets import Backend, Target, TargetFunction, TargetLayer

Array = np.ndarray
Stages = Mapping[str, Array]
STAGES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "q_scale",
    "scores",
    "capped",
    "masked",
    "weights",
    "logsumexp",
    "context",
    "output",
)
HEADS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "q_norm": "q", "k_norm": "k"}


def backend_stages(backend: str, case: Case, dtype: str, kind: str, kernel: bool) -> Stages:
    """All stages of a case whose numbers are rounded to `dtype`, computed in `kind`."""
    if kernel:
        call, framework = in_dtype(inputs.kernel_call(case, dtype), kind), Backend(backend).framework
        return _traced(framework, Backend(backend).module.attention_stages, call)
    layer = Backend(backend).layer(case.config, kind)
    layer.load({name: x.astype(DTYPES[kind]) for name, x in inputs.weights(case, dtype).items()})
    return _traced(layer.framework, layer.module.trace, in_dtype(inputs.layer_call(case, dtype), kind))


def target_stages(target: Target, case: Case, dtype: str) -> Stages:
    """The stages that a target shows, by our names and in our shapes."""
    if isinstance(target, TargetFunction):
        call = inputs.kernel_call(case, dtype)
        context, weights = target(call)
        return {"weights": _asked_weights(target, call) if weights is None else weights, "context": context}
    layer, call = target.layer(case.config, dtype), inputs.layer_call(case, dtype)
    layer.load(inputs.weights(case, dtype))
    if hasattr(layer.module, "trace"):
        return _traced(layer.framework, layer.module.trace, call)
    seen = _watched(layer, case) if layer.framework.name == "torch" else {}
    output, weights = layer(call)
    last = {"output": output} if weights is None else {"weights": weights, "output": output}
    return {stage: (seen | last)[stage] for stage in STAGES if stage in seen | last}


def _traced(framework: Any, function: Any, call: Call) -> Stages:
    arguments, keywords = call.arguments, call.keywords
    stages = framework.apply(
        function, *map(framework.to, arguments), **{name: framework.to(x) for name, x in keywords.items()}
    )
    return {name: framework.back(x) for name, x in stages.items()}


def _asked_weights(kernel: TargetFunction, call: Call) -> Array:
    """The weights of a function that returns none: its context where value is the identity, Hv columns at a time."""
    (B, K, S, Hv), dtype = call.value.shape, call.value.dtype
    identity = np.eye(-(-S // Hv) * Hv, dtype=dtype)[:S]
    parts = np.split(identity, identity.shape[1] // Hv, axis=1)
    values = [np.ascontiguousarray(np.broadcast_to(part, (B, K, S, Hv))) for part in parts]
    return np.concatenate([kernel(replace(call, value=value))[0] for value in values], axis=-1)[..., :S]


def _watched(layer: TargetLayer, case: Case) -> dict[str, Array]:
    """Filled when the layer is called: what its submodules named like a stage give, where that has the stage's size."""
    seen: dict[str, Array] = {}
    c = case.config
    heads = {"q": (c.num_heads, case.T), "k": (c.num_kv_heads, case.S), "v": (c.num_kv_heads, case.S)}

    def watch(stage: str) -> Any:
        count, length = heads[HEADS[stage]]

        def hook(_module: Any, _arguments: Any, result: Any) -> None:
            array = layer.framework.back(result)
            if array.ndim == 3 and array.shape[2] % count == 0:
                array = rearrange(array, "B T (n H) -> B n T H", n=count)
            elif array.ndim == 4 and array.shape[1:3] == (length, count):
                array = rearrange(array, "B T n H -> B n T H")
            if array.shape[1:3] == (count, length):
                seen[stage] = array

        return hook

    for name, module in layer.module.named_modules():
        stage = name.rpartition(".")[2]
        if stage in HEADS:
            module.register_forward_hook(watch(stage))
    return seen

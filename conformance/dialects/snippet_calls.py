"""The call of each public implementation as its user writes it: `attend(q, k, v, ...)` on arrays (B, N, T, H) of NumPy.

The values of these calls are rows of the identity. snippet_layers: the calls of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from conformance.dialects.snippet_layers import FAMILIES, FAMILY, FAST_PATH, KERAS, LITGPT, MHA, NNX_LAYER, TORCH


@dataclass(frozen=True)
class Call:
    """code: imports and `attend`. without: conventions that it does not show. more: code of its own, and what that
    prints.
    """

    code: str
    without: tuple[str, ...] = ()
    more: str = ""
    printed: str = ""


SDPA = (
    TORCH
    + """

def attend(q, k, v, mask=None, causal=False, scale=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad(){path}:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        ).double().numpy()
"""
)
FLEX = (
    TORCH
    + """
from torch.nn.attention import flex_attention as flex

flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def attend(q, k, v, mask=None, scale=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    blocks = bias = None
    if mask is not None:
        mask = torch.from_numpy(mask)
        if mask.dtype == torch.bool:
            blocks = flex.create_block_mask(
                lambda b, h, i, j: mask[0, 0, i, j], 1, q.shape[1], q.shape[2], k.shape[2], device="cpu"
            )
        else:
            bias = lambda score, b, h, i, j: score + mask[0, 0, i, j]
    with torch.no_grad():
        return flex.flex_attention(
            q, k, v, bias, blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        ).double().numpy()
"""
)
JAX = """
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)


def attend(q, k, v, mask=None, dtype=None{signature}):
    q, k, v = (jnp.asarray(x, dtype and jnp.dtype(dtype)).swapaxes(1, 2) for x in (q, k, v))
    given = {{}} if mask is None else {{"mask" if mask.dtype == bool else "bias": jnp.asarray(mask)}}
    return np.asarray({call}, np.float64).swapaxes(1, 2)
"""
BY_BIAS = """
q, k, v = inputs(2, 2, 4, 4)
mask = np.where(np.arange(4) < 3, 0, -np.inf).astype(np.float32) + np.zeros((1, 1, 4, 1), np.float32)
outputs = attend(q, k + bad, v, mask=mask), attend(q, k, v + bad, mask=mask)
leaks = [bool(np.isnan(output).any()) for output in outputs]
print("poison by bias: NaN in a hidden key, value reaches the context:", leaks)
"""
EAGER = (
    TORCH
    + """
from types import SimpleNamespace

from transformers.models.llama.modeling_llama import eager_attention_forward


def attend(q, k, v, mask=None, scale=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    mask = None if mask is None else torch.from_numpy(mask)
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    with torch.no_grad():
        context, _ = eager_attention_forward(module, q, k, v, mask, scale or q.shape[3] ** -0.5)
    return context.transpose(1, 2).double().numpy()
"""
)
HF_SDPA = (
    TORCH
    + """
from types import SimpleNamespace

from transformers.integrations.sdpa_attention import sdpa_attention_forward


def attend(q, k, v, mask=None, causal=False, scale=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    mask = None if mask is None else torch.from_numpy(mask)
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=False, config=None)
    with torch.no_grad():
        context, _ = sdpa_attention_forward(module, q, k, v, mask, scaling=scale, is_causal=causal)
    return context.transpose(1, 2).double().numpy()
"""
)
X_TRANSFORMERS = (
    TORCH
    + """
from x_transformers.attend import Attend


def attend(q, k, v, mask=None, causal=False, scale=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    given = {{}}
    if mask is not None:
        mask = torch.from_numpy(mask).expand(1, q.shape[1], q.shape[2], k.shape[2])
        given = {{"mask" if mask.dtype == torch.bool else "attn_bias": mask}}
    layer = Attend(heads=q.shape[1], causal=causal, scale=scale, flash={flash}).eval()
    with torch.no_grad():
        return layer(q, k, v, **given)[0].double().numpy()
"""
)
ONNX_MODEL = """
import numpy as np
import onnx{runtime}
from onnx import helper{evaluator}

PAST = {past}


def attend(q, k, v, mask=None, causal=False, scale=None{window}):
    S, old = k.shape[2], k.shape[2] - q.shape[2] if PAST else 0
    mask = None if mask is None else np.broadcast_to(mask, (1, 1, q.shape[2], S)).copy()
    fed = {{"Q": q, "K": k[:, :, old:], "V": v[:, :, old:], "attn_mask": mask}}
    if PAST:
        fed |= {{"past_key": k[:, :, :old], "past_value": v[:, :, :old]}}
    inputs = [name if x is not None else "" for name, x in fed.items()]
    fed = {{name: np.ascontiguousarray(x) for name, x in fed.items() if x is not None}}
    attributes = {{"is_causal": int(causal), "scale": scale{attribute}}}
    node = helper.make_node(
        "Attention",
        inputs,
        ["Y", "present_key", "present_value"] if PAST else ["Y"],
        **{{name: x for name, x in attributes.items() if x is not None}},
    )
    of = lambda name, x: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
    graph = helper.make_graph(
        [node], "attention", [of(name, x) for name, x in fed.items()], [of(name, q) for name in node.output]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", {opset})], ir_version=11)
    return {run}.run(None, fed)[0].astype(np.float64)
"""
ORT_GQA = """
import numpy as np
import onnxruntime
from onnx import helper


def attend(q, k, v, causal=True, window=None, scale=None):
    (_, N, T, H), K, S = q.shape, k.shape[1], k.shape[2]
    v = np.pad(v, ((0, 0), (0, 0), (0, 0), (0, H - v.shape[3])))
    fed = {
        "query": q.swapaxes(1, 2).reshape(1, T, -1),
        "key": k[:, :, S - T :].swapaxes(1, 2).reshape(1, T, -1),
        "value": v[:, :, S - T :].swapaxes(1, 2).reshape(1, T, -1),
        "past_key": k[:, :, : S - T],
        "past_value": v[:, :, : S - T],
        "seqlens_k": np.array([S - 1], np.int32),
        "total_sequence_length": np.array(S, np.int32),
    }
    fed = {name: np.ascontiguousarray(x) for name, x in fed.items()}
    attributes = {"num_heads": N, "kv_num_heads": K, "scale": scale, "local_window_size": window}
    node = helper.make_node(
        "GroupQueryAttention",
        list(fed),
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        **{name: x for name, x in attributes.items() if x is not None},
    )
    of = lambda name, x: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
    graph = helper.make_graph(
        [node], "attention", [of(name, x) for name, x in fed.items()], [of(name, q) for name in node.output]
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    output = onnxruntime.InferenceSession(model.SerializeToString()).run(None, fed)[0]
    return output.reshape(1, T, N, H).swapaxes(1, 2).astype(np.float64)
"""
OF_MODEL = ("causal", "causal window of W", "given scale", "alignment")
NORMED = ("scale", "16-bit scores", "float64")  # products of normed queries and keys
OF_FAMILY = {"qwen3": NORMED, "gemma3": NORMED, "gpt_oss": ("floating mask",)}  # beside finfo.min a sink has all weight
NO_BFLOAT16 = ("16-bit scores",)


def _torch() -> Iterator[tuple[str, Call]]:
    for name, path in (("", ""), (".math", "MATH"), (".flash", "FLASH_ATTENTION")):
        under = f", torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.{path})" if path else ""
        yield f"torch.sdpa{name}", Call(SDPA.format(path=under))
    yield "torch.flex_attention", Call(FLEX)
    for name, weights in (
        ("", "need_weights=True, average_attn_weights=False"),
        (".without_weights", "need_weights=False"),
    ):
        more, printed = ("", "") if name else (FAST_PATH, "fast path, empty row: nan")
        yield f"torch.MultiheadAttention{name}", Call(MHA.format(weights=weights), more=more, printed=printed)
    yield "transformers.eager", Call(EAGER)
    yield "transformers.sdpa", Call(HF_SDPA)
    for name, flash in (("", False), (".flash", True)):
        yield f"x_transformers{name}", Call(X_TRANSFORMERS.format(flash=flash))


def _jax() -> Iterator[tuple[str, Call]]:
    of = "q, k, v, **given, is_causal=causal, local_window_size=window, scale=scale"
    code = JAX.format(
        signature=", causal=False, window=None, scale=None",
        call=f"jax.nn.dot_product_attention(\n        {of}\n    )",
    )
    line = "poison by bias: NaN in a hidden key, value reaches the context: [True, True]"
    yield "jax.nn", Call(code, more=BY_BIAS, printed=line)
    code = JAX.replace("import numpy as np", "import numpy as np\nfrom flax import {0}", 1)
    yield "flax.nnx", Call(code.format(
        "nnx", signature=", causal=False",
        call="nnx.dot_product_attention(q, k, v, **given, is_causal=causal)",
    ))  # fmt: skip
    yield "flax.linen", Call(code.format(
        "linen", signature="", call="linen.dot_product_attention(q, k, v, **given)",
    ))  # fmt: skip
    yield "flax.nnx.MultiHeadAttention", Call(NNX_LAYER)


def _keras() -> Iterator[tuple[str, Call]]:
    for backend in ("torch", "jax"):
        for name, scores, first in (("", "False", ""), (".scores", "True", "[0]")):
            code = KERAS.format(backend=backend, scores=scores, first=first)
            yield f"keras.{backend}{name}", Call(code, NO_BFLOAT16)


def _onnx() -> Iterator[tuple[str, Call]]:
    for past, name in ((False, ""), (True, ".past")):
        yield f"onnx.reference{name}", Call(ONNX_MODEL.format(
            runtime="", evaluator="\nfrom onnx.reference import ReferenceEvaluator", past=past, opset=25,
            window=", window=None", attribute=', "left_window_size": window', run="ReferenceEvaluator(model)",
        ), NO_BFLOAT16)  # fmt: skip
        yield f"onnxruntime.Attention{name}", Call(ONNX_MODEL.format(
            runtime="runtime", evaluator="", past=past, opset=24, window="", attribute="",
            run="onnxruntime.InferenceSession(model.SerializeToString())",
        ), NO_BFLOAT16)  # fmt: skip
    yield "onnxruntime.GroupQueryAttention", Call(ORT_GQA, NO_BFLOAT16)


def _layers() -> Iterator[tuple[str, Call]]:
    """Their causal and their window are of the model, whose masks these calls do not make."""
    for family, (config, layer, more, prepare, half) in FAMILIES.items():
        for path in ("eager",) if family == "gpt_oss" else ("eager", "sdpa"):
            words = {"config": config, "layer": layer, "more": more, "prepare": prepare, "half": half}
            code = FAMILY.format(family=family, implementation=path, **words)
            yield f"transformers.{family}.{path}", Call(code, (*OF_MODEL, *OF_FAMILY.get(family, ())))
    yield "litgpt", Call(LITGPT, ("alignment", "given scale"))


CALLS: Mapping[str, Call] = dict(pair for pairs in (_torch, _jax, _keras, _onnx, _layers) for pair in pairs())

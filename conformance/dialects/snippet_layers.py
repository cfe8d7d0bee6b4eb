"""The calls of layers, as `snippet_calls` has those of functions: projections pick each head's query, key and value."""

from __future__ import annotations

TORCH = """
import numpy as np
import torch


def tensors(*arrays, dtype=None):
    given = (torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)
    return [x if dtype is None else x.to(getattr(torch, dtype)) for x in given]
"""
MHA = (
    TORCH
    + """

def attend(q, k, v, mask=None, causal=False, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    (_, N, T, H), D = q.shape, q.shape[1] * q.shape[3]
    v = torch.nn.functional.pad(v, (0, H - v.shape[3]))
    layer = torch.nn.MultiheadAttention(D, N, bias=False, batch_first=True, dtype=q.dtype).eval()
    eye = torch.eye(D, dtype=q.dtype)
    layer.load_state_dict({{"in_proj_weight": torch.cat([eye] * 3), "out_proj.weight": eye}})
    mask = None if mask is None else torch.from_numpy(mask)[0, 0]
    if causal:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=q.dtype)
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
    output, _ = layer(q, k, v, attn_mask=mask, is_causal=causal, {weights})
    return output.detach().unflatten(2, (N, H)).transpose(1, 2).double().numpy()
"""
)
FAST_PATH = """
layer, x = torch.nn.MultiheadAttention(32, 2, batch_first=True).eval(), torch.ones(1, 3, 32)
with torch.no_grad():  # in eval mode, self-attention of an even number of heads, with biases: its fast path
    output, _ = layer(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool), need_weights=False)
print("fast path, empty row:", output[0, 0, 0].item())
"""
NNX_LAYER = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

jax.config.update("jax_enable_x64", True)


def attend(q, k, v, mask=None, causal=False, dtype=None):
    q, k, v = (jnp.asarray(x, dtype and jnp.dtype(dtype)) for x in (q, k, v))
    N, H, K = q.shape[1], q.shape[3], k.shape[1]
    layer = nnx.MultiHeadAttention(
        N, N * H, N * H, N * H, K, K * H, use_bias=False, decode=False, param_dtype=q.dtype, rngs=nnx.Rngs(0)
    )
    for part, heads in ((layer.query, N), (layer.key, K), (layer.value, K)):
        part.kernel[...] = jnp.eye(heads * H, dtype=q.dtype).reshape(heads * H, heads, H)
    layer.out.kernel[...] = jnp.eye(N * H, dtype=q.dtype).reshape(N, H, N * H)
    q, k, v = (x.swapaxes(1, 2).reshape(1, x.shape[2], -1) for x in (q, k, v))
    output = layer(q, k, v, mask=mask, is_causal=causal)
    return np.asarray(output, np.float64).reshape(1, -1, N, H).swapaxes(1, 2)
"""
KERAS = """
import os

os.environ["KERAS_BACKEND"] = "{backend}"
import keras
import numpy as np


def attend(q, k, v, mask=None, causal=False, window=None):
    (_, N, T, H), K, S = q.shape, k.shape[1], k.shape[2]
    layer = keras.layers.GroupQueryAttention(H, N, K, use_bias=False, sliding_window=window, dtype=str(q.dtype))
    layer.build((None, None, N * H), (None, None, K * H), (None, None, K * H))
    for part, heads in ((layer._query_dense, N), (layer._key_dense, K), (layer._value_dense, K)):
        part.kernel.assign(np.eye(heads * H).reshape(heads * H, heads, H))
    layer._output_dense.kernel.assign(np.eye(N * H).reshape(N, H, N * H))
    q, k, v = (x.swapaxes(1, 2).reshape(1, x.shape[2], -1) for x in (q, k, v))
    mask = None if mask is None else np.broadcast_to(mask[:, 0], (1, T, S))
    output = layer(
        q, value=v, key=k, attention_mask=mask, use_causal_mask=causal, return_attention_scores={scores}
    ){first}
    output = keras.ops.convert_to_numpy(keras.ops.stop_gradient(output))
    return np.float64(output).reshape(1, T, N, H).swapaxes(1, 2)
"""
FAMILY = (
    TORCH
    + """
from transformers import {config}
from transformers.models.{family}.modeling_{family} import {layer}


def attend(q, k, v, mask=None, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    (_, N, T, H), K = q.shape, k.shape[1]
    v = torch.nn.functional.pad(v, (0, H - v.shape[3]))
    x = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], 2)
    sizes = dict(hidden_size=x.shape[2], num_attention_heads=N, num_key_value_heads=K, head_dim=H)
    config = {config}(**sizes, num_hidden_layers=1, attn_implementation="{implementation}"{more})
    layer = {layer}(config, layer_idx=0).to(q.dtype).eval()
    layer.is_causal = False
    for part, start in ((layer.q_proj, 0), (layer.k_proj, N * H), (layer.v_proj, (N + K) * H), (layer.o_proj, 0)):
        part.weight.data.zero_().diagonal(start).fill_(1){prepare}
    cos = torch.ones(1, T, H{half}, dtype=q.dtype)
    mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad():
        output, _ = layer(x, position_embeddings=(cos, 0 * cos), attention_mask=mask)[:2]
    return output[..., : N * H].unflatten(2, (N, H)).transpose(1, 2).double().numpy()
"""
)
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaAttention", "", "", ""),
    "mistral": ("MistralConfig", "MistralAttention", "", "", ""),
    "qwen3": ("Qwen3Config", "Qwen3Attention", "", "", ""),
    "gemma2": ("Gemma2Config", "Gemma2Attention", ", query_pre_attn_scalar=H, attn_logit_softcapping=None", "", ""),
    "gemma3": ("Gemma3TextConfig", "Gemma3Attention", ", query_pre_attn_scalar=H", "", ""),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssAttention",
        ', attention_bias=False, layer_types=["full_attention"]',
        "\n    layer.sinks.data.fill_(-60)  # next to nothing",
        " // 2",
    ),
}
LITGPT = (
    TORCH
    + """
from litgpt.model import CausalSelfAttention, Config


def attend(q, k, v, mask=None, causal=False, dtype=None):
    q, k, v = tensors(q, k, v, dtype=dtype)
    (_, N, T, H), K = q.shape, k.shape[1]
    v = torch.nn.functional.pad(v, (0, H - v.shape[3]))
    x = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], 2)
    config = Config(
        n_layer=1, n_head=N, n_embd=x.shape[2], head_size=H, n_query_groups=K, bias=False, rotary_percentage=1.0
    )
    layer = CausalSelfAttention(config, 0).to(q.dtype).eval()
    layer.qkv.weight.data.copy_(torch.eye(x.shape[2]))
    layer.proj.weight.data.copy_(torch.eye(x.shape[2], N * H))
    cos = torch.ones(1, T, H, dtype=q.dtype)
    if not causal:  # it is causal where it is given no mask
        mask = np.ones((1, 1, T, T), bool) if mask is None else mask
    mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad():
        output = layer(x, cos, 0 * cos, mask)
    return output[..., : N * H].unflatten(2, (N, H)).transpose(1, 2).double().numpy()
"""
)

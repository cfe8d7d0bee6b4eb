"""Layers of packages that are compared where they are installed: litgpt, torchtune, x-transformers, gemma."""

from __future__ import annotations

import numpy as np
import pytest

from gqa_numpy import masks
from gqa_spec import AttentionConfig, RopeConfig
from gqa_spec.config import QKNorm
from tests.conformance.test_foreign_layers import FLOAT32, B, D, H, K, N, T, close, fill, ours
from tests.helpers import normal

pytestmark = pytest.mark.no_shape_checks


@pytest.mark.parametrize("rotary_dim", [14, 6])
@pytest.mark.parametrize("qk_norm", [None, "rms", "rms_full"])
def test_litgpt(rotary_dim: int, qk_norm: QKNorm | None) -> None:
    torch = pytest.importorskip("torch")
    litgpt = pytest.importorskip("litgpt.model", exc_type=ImportError)
    norm = {"norm_qk_type": "olmo2" if qk_norm == "rms_full" else "default", "norm_eps": 1e-6}
    settings = litgpt.Config(
        n_layer=1,
        n_head=N,
        n_embd=D,
        head_size=H,
        n_query_groups=K,
        bias=True,
        block_size=T,
        padded_vocab_size=8,
        rotary_percentage=rotary_dim / H,
        norm_class_name="RMSNorm",
        norm_qk=qk_norm is not None,
        **norm,
    )
    module = litgpt.CausalSelfAttention(settings, 0).requires_grad_(False)
    fill(module)
    x = normal(B, T, D)
    cos, sin = litgpt.build_rope_cache(T, rotary_dim)
    output = module(torch.from_numpy(x), cos[None], sin[None])
    config = AttentionConfig(
        embed_dim=D,
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        qkv_bias=True,
        out_bias=True,
        causal=True,
        qk_norm=qk_norm,
        rope=RopeConfig(rotary_dim=rotary_dim),
    )
    got, _ = ours("litgpt", {name: p.numpy() for name, p in module.named_parameters()}, config, x)
    close(got, output, FLOAT32)


@pytest.mark.parametrize("layout", ["torchtune", "torchtune.qwen2"])
def test_torchtune(layout: str) -> None:
    torch = pytest.importorskip("torch")
    attention = pytest.importorskip("torchtune.modules.attention", exc_type=ImportError)
    if layout == "torchtune":
        from torchtune.modules import RotaryPositionalEmbeddings as Rotary
    else:
        from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings as Rotary
    linear = torch.nn.Linear
    module = attention.MultiHeadAttention(
        embed_dim=24,
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        q_proj=linear(24, N * H),
        k_proj=linear(24, K * H),
        v_proj=linear(24, K * H),
        output_proj=linear(N * H, 24, bias=False),
        pos_embeddings=Rotary(H, T),
    ).requires_grad_(False)
    fill(module)
    x = normal(B, T, 24)
    output = module(torch.from_numpy(x), torch.from_numpy(x))
    rope = RopeConfig(theta=10_000.0 if layout == "torchtune" else 1_000_000.0)
    config = AttentionConfig(
        embed_dim=24, num_heads=N, num_kv_heads=K, head_dim=H, qkv_bias=True, causal=True, rope=rope
    )
    got, _ = ours(layout, {name: p.numpy() for name, p in module.named_parameters()}, config, x)
    close(got, output, FLOAT32)


@pytest.mark.parametrize("rotary_dim", [14, 6])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_x_transformers(rotary_dim: int, kv_heads: int) -> None:
    torch = pytest.importorskip("torch")
    x_transformers = pytest.importorskip("x_transformers.x_transformers", exc_type=ImportError)
    module = x_transformers.Attention(
        D, dim_head=H, heads=N, kv_heads=kv_heads, causal=True, value_dim_head=9, head_learned_sink=True
    ).requires_grad_(False)
    fill(module)
    x = normal(B, T, D)
    rotary = x_transformers.RotaryEmbedding(rotary_dim)
    output = module(torch.from_numpy(x), rotary_pos_emb=rotary.forward_from_seq_len(T))
    output = output[0] if isinstance(output, tuple) else output
    config = AttentionConfig(
        embed_dim=D,
        num_heads=N,
        num_kv_heads=kv_heads,
        head_dim=H,
        v_head_dim=9,
        causal=True,
        sinks=True,
        rope=RopeConfig(rotary_dim=rotary_dim),
    )
    got, _ = ours("x-transformers", {name: p.numpy() for name, p in module.named_parameters()}, config, x)
    close(got, output, FLOAT32)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_gemma(kv_heads: int) -> None:
    jax = pytest.importorskip("jax")
    gemma = pytest.importorskip("gemma.gm.nn._modules", exc_type=ImportError)
    module = gemma.Attention(
        num_heads=N,
        num_kv_heads=kv_heads,
        features=D,
        head_dim=H,
        attn_type=gemma.AttentionType.GLOBAL,
        query_pre_attn_scalar=0.3,
        use_qk_norm=True,
    )
    x, positions = normal(B, T, D), np.arange(T)[None].repeat(B, 0)
    mask = np.broadcast_to(masks.causal(T, T), (B, T, T))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, positions, None, mask)
    variables = jax.tree.map(lambda leaf: normal(*leaf.shape) / 4, shapes)
    _, output = jax.jit(module.apply)(variables, x, positions, None, mask)
    foreign = {f"{name}.{kind}": p for name, inside in variables["params"].items() for kind, p in inside.items()}
    config = AttentionConfig(
        embed_dim=D,
        num_heads=N,
        num_kv_heads=kv_heads,
        head_dim=H,
        causal=True,
        scale=0.3,
        qk_norm="rms_plus_one",
        rope=RopeConfig(),
    )
    got, _ = ours("gemma", foreign, config, x)
    close(got, output, FLOAT32)

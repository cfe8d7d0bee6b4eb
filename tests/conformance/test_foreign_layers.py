"""A layer with weights from another implementation gives that implementation's own output.

gqa_numpy in float64 with `to_canonical` weights against the foreign module on the same input. float32 modules are held
to 1e-5 of the largest value: their own rounding, softmax in float32 and inverse frequencies that are off by 1e-7. What
is not installed is left out, and pytest says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gqa_numpy import GroupedQueryAttention
from gqa_spec import AttentionConfig, RopeConfig
from gqa_weights import LAYOUTS, from_canonical, to_canonical
from tests.helpers import normal

pytestmark = pytest.mark.no_shape_checks

Array = np.ndarray
B, T, S = 2, 7, 5
N, K, H, D = 6, 2, 14, 22
FLOAT32, FLOAT64 = 1e-5, 1e-12


def close(got: Array, expected: Any, tolerance: float) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def ours(
    layout: str, foreign: Mapping[str, Array], config: AttentionConfig, *inputs: Array, **call: Any
) -> tuple[Array, Array]:
    """Output and weights of gqa_numpy in float64; the weights go back to the foreign layout bit for bit."""
    weights = to_canonical(LAYOUTS[layout], foreign, config)
    for name, x in from_canonical(LAYOUTS[layout], weights, config).items():
        assert x.tobytes() == np.asarray(foreign[name]).tobytes(), name
    layer = GroupedQueryAttention.from_config(config, dtype=np.float64).eval()
    layer.load_weights(weights)
    output, attention = layer(*(x.astype(np.float64) for x in inputs), **call)
    assert attention is not None
    return output, attention


def fill(module: Any) -> None:
    """Random parameters, projections small, so that no softmax saturates; norm weights and sinks are not."""
    for parameter in module.parameters():
        width = parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1.0
        parameter.data = parameter.data.new_tensor(normal(*parameter.shape, dtype=np.float64) / width)


# --- transformers ----------------------------------------------------------------------------------------------------

# transformers wants a width that N divides, though heads need not fill it
SIZES = {
    "hidden_size": N * 11,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "head_dim": H,
    "num_hidden_layers": 4,
}
FILLED = {**SIZES, "hidden_size": N * H}
BIASED = {"qkv_bias": True, "out_bias": True}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "llama": (SIZES | {"attention_bias": True}, BIASED, "huggingface"),
    "mistral": (SIZES, {}, "huggingface"),
    "qwen2": (FILLED, {"qkv_bias": True}, "huggingface"),
    "qwen3": (SIZES | {"attention_bias": True}, BIASED | {"qk_norm": "rms"}, "huggingface"),
    "gemma": (SIZES, {}, "huggingface"),
    "gemma2": (
        SIZES | {"query_pre_attn_scalar": 11, "attn_logit_softcapping": 3.0},
        {"scale": 11**-0.5, "softcap": 3.0},
        "huggingface",
    ),
    "gemma3_text": (
        SIZES | {"query_pre_attn_scalar": 11, "layer_types": ["full_attention"] * 4},
        {"scale": 11**-0.5, "qk_norm": "rms_plus_one", "rope": {"theta": 1e6}},
        "huggingface",
    ),
    "phi3": (SIZES | {"pad_token_id": 0}, {}, "huggingface.phi3"),
    "phi3, partial rotary": (
        SIZES | {"pad_token_id": 0, "partial_rotary_factor": 6 / 14},
        {"rope": {"rotary_dim": 6}},
        "huggingface.phi3",
    ),
    "olmo2": (FILLED | {"rms_norm_eps": 1e-6}, {"qk_norm": "rms_full"}, "huggingface"),
    "starcoder2": (FILLED | {"use_bias": True}, BIASED, "huggingface"),
    "smollm3": (SIZES | {"no_rope_layers": [1, 1, 1, 1]}, {"rope": {"theta": 2e6}}, "huggingface"),
    "smollm3, no rope": (SIZES | {"no_rope_layers": [0, 1, 1, 1]}, {"rope": None}, "huggingface"),
    "gpt_oss": (
        SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
        BIASED | {"sinks": True, "rope": {"theta": 150000.0}},
        "huggingface",
    ),
    "gpt_neox": (
        {"hidden_size": N * 20, "num_attention_heads": N, "num_hidden_layers": 4, "rotary_pct": 0.2},
        BIASED | {"num_kv_heads": N, "head_dim": 20, "rope": {"rotary_dim": 4}},
        "gpt_neox",
    ),
}
MODULES = {"gemma3_text": "gemma3"}
PREFIXES = {"gemma3": "Gemma3", "gpt_oss": "GptOss", "gpt_neox": "GPTNeoX", "smollm3": "SmolLM3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers(family: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    given, expressed, layout = FAMILIES[family]
    kind = family.partition(",")[0]
    settings = transformers.AutoConfig.for_model(kind, **given, attn_implementation="eager")
    name = MODULES.get(kind, kind)
    prefix = PREFIXES.get(name, name.capitalize())
    models: Any = __import__(f"transformers.models.{name}.modeling_{name}", fromlist=[prefix])
    module = getattr(models, f"{prefix}Attention")(settings, layer_idx=0).eval().requires_grad_(False)
    fill(module)
    x, positions = normal(B, T, settings.hidden_size), torch.arange(T)[None]
    rotary = getattr(models, f"{prefix}RotaryEmbedding")(settings)
    layer_type = ("full_attention",) if name == "gemma3" else ()
    hidden = torch.where(torch.ones(T, T, dtype=torch.bool).tril(), 0.0, -torch.inf)[None, None]
    output, weights = module(
        torch.from_numpy(x),
        position_embeddings=rotary(torch.from_numpy(x), positions, *layer_type),
        attention_mask=hidden,
    )[:2]

    rope = expressed.get("rope", {})
    config = AttentionConfig(
        **{
            "embed_dim": settings.hidden_size,
            "num_heads": N,
            "num_kv_heads": K,
            "head_dim": H,
            "causal": True,
            **expressed,
            "rope": None if rope is None else RopeConfig(**rope),
        }
    )
    foreign = {path: parameter.numpy() for path, parameter in module.named_parameters()}
    got, attention = ours(layout, foreign, config, x)
    close(got, output, FLOAT32)
    close(attention, weights, FLOAT32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_transformers_read_gguf_rows_as_we_do(dtype: Any) -> None:
    """Its readers of llama and gemma tensors, on tensors that we lay out."""
    pytest.importorskip("torch")
    gguf_of = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    reader = gguf_of.LlamaTensorProcessor({"num_attention_heads": 8, "num_key_value_heads": 2})
    config = AttentionConfig(embed_dim=11, num_heads=8, num_kv_heads=2, head_dim=6, qkv_bias=True, rope=RopeConfig())
    shapes = {"q_proj.weight": (48, 11), "q_proj.bias": (48,), "k_proj.weight": (12, 11), "k_proj.bias": (12,)}
    weights = {name: normal(*shape, dtype=dtype) for name, shape in shapes.items()}
    weights |= {"v_proj.weight": normal(12, 11, dtype=dtype), "v_proj.bias": normal(12, dtype=dtype)}
    weights |= {"o_proj.weight": normal(11, 48, dtype=dtype)}
    stored = from_canonical(LAYOUTS["gguf.llama"], weights, config)
    for name, x in stored.items():
        ours = name.replace("attn_output", "o_proj").replace("attn_", "").replace(".", "_proj.", 1)
        ours = ours.replace("o_proj_proj", "o_proj")
        np.testing.assert_array_equal(reader.process(x, f"blk.0.{name}").weights, weights[ours])


def test_transformers_read_gguf_norms_as_we_do() -> None:
    pytest.importorskip("torch")
    gguf_of = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    config = AttentionConfig(embed_dim=12, num_heads=2, qk_norm="rms_plus_one", rope=RopeConfig())
    foreign = {f"attn_{name}.weight": normal(12, 12) for name in ("q", "k", "v", "output")}
    foreign |= {"attn_q_norm.weight": 1 + normal(6), "attn_k_norm.weight": 2 * normal(6)}
    weights = to_canonical(LAYOUTS["gguf.gemma3"], foreign, config)
    read = gguf_of.Gemma2TensorProcessor({}).process
    for x in "qk":
        name = f"attn_{x}_norm.weight"
        np.testing.assert_array_equal(weights[f"{x}_norm.weight"], read(foreign[name], f"blk.0.{name}").weights)


# --- Meta's files ----------------------------------------------------------------------------------------------------


def test_meta_llama() -> None:
    """Meta's Attention.forward and apply_rotary_emb (llama/model.py: pairs as complex numbers), in NumPy."""
    foreign = {
        "wq.weight": normal(N * H, D) / 4,
        "wk.weight": normal(K * H, D) / 4,
        "wv.weight": normal(K * H, D) / 4,
        "wo.weight": normal(D, N * H),
    }
    x = normal(B, T, D)
    xq, xk, xv = (x.astype(np.float64) @ foreign[f"w{name}.weight"].T for name in "qkv")
    angles = np.outer(np.arange(T), 10000.0 ** (-np.arange(0, H, 2) / H))
    freqs_cis = np.exp(1j * angles)[:, None]

    def turned(rows: Array) -> Array:
        pairs = np.ascontiguousarray(rows).view(np.complex128) * freqs_cis
        return pairs.view(np.float64)

    q, k = turned(xq.reshape(B, T, N, H)), turned(xk.reshape(B, T, K, H))
    keys, values = (np.repeat(t, N // K, axis=2) for t in (k, xv.reshape(B, T, K, H)))
    scores = np.einsum("btnh,bsnh->bnts", q, keys) / np.sqrt(H) + np.triu(np.full((T, T), -np.inf), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    weights = scores / scores.sum(-1, keepdims=True)
    output = np.einsum("bnts,bsnh->btnh", weights, values).reshape(B, T, N * H) @ foreign["wo.weight"].T
    for rope in (RopeConfig(), RopeConfig(pairing="interleaved")):
        config = AttentionConfig(embed_dim=D, num_heads=N, num_kv_heads=K, head_dim=H, causal=True, rope=rope)
        got, attention = ours("meta.llama", foreign, config, x)
        close(got, output, 1e-7)  # inv_freq is float32 here, by SPEC 10
        close(attention, weights, 1e-7)


# --- PyTorch, Flax, Keras --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dim", [N * H, 13])
def test_torch_multihead_attention(kv_dim: int) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.MultiheadAttention(
        N * H, N, kdim=kv_dim, vdim=kv_dim, batch_first=True, dtype=torch.float64
    ).requires_grad_(False)
    fill(module)
    query, key, value = normal(B, T, N * H), normal(B, S, kv_dim), normal(B, S, kv_dim) + 1
    inputs = [torch.from_numpy(x).double() for x in (query, key, value)]
    output, weights = module(*inputs, average_attn_weights=False)
    config = AttentionConfig(embed_dim=N * H, num_heads=N, kv_dim=kv_dim, qkv_bias=True, out_bias=True)
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    got, attention = ours("torch.nn.MultiheadAttention", state, config, query, key, value)
    close(got, output, FLOAT64)
    close(attention, weights, FLOAT64)


def test_torch_extra_keys_are_refused() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.MultiheadAttention(24, 6, add_bias_kv=True)
    state = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    config = AttentionConfig(embed_dim=24, num_heads=6, qkv_bias=True, out_bias=True)
    with pytest.raises(ValueError, match="bias_k: add_bias_kv appends a learned key and value"):
        to_canonical(LAYOUTS["torch.nn.MultiheadAttention"], state, config)


def test_the_gate_of_qwen3_next() -> None:
    """Its q_proj holds the rows of each query head and then those of the head's gate."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from transformers import Qwen3NextConfig

    settings = Qwen3NextConfig(
        hidden_size=24,
        num_attention_heads=N,
        num_key_value_heads=K,
        head_dim=H,
        attention_bias=True,
        partial_rotary_factor=1.0,
        attn_implementation="eager",
    )
    module = modeling.Qwen3NextAttention(settings, 3).double()
    fill(module)
    x = normal(B, T, 24, dtype=np.float64)
    positions = torch.arange(T)[None]
    rotary = modeling.Qwen3NextRotaryEmbedding(settings)(torch.from_numpy(x), positions)
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        output, _ = module(torch.from_numpy(x), rotary, mask)
    foreign = {name: p.detach().numpy() for name, p in module.named_parameters()}
    config = AttentionConfig(
        embed_dim=24,
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        qkv_bias=True,
        out_bias=True,
        causal=True,
        qk_norm="rms_plus_one",
        rope=RopeConfig(theta=settings.rope_parameters["rope_theta"]),
        output_gate=True,
    )
    got, _ = ours("huggingface.gated", foreign, config, x)
    close(got, output.numpy(), FLOAT32)


def test_flax_nnx() -> None:
    nnx, jnp = pytest.importorskip("flax.nnx"), pytest.importorskip("jax.numpy")
    module = nnx.eval_shape(
        lambda: nnx.MultiHeadAttention(
            N,
            D,
            qkv_features=N * H,
            out_features=D,
            num_kv_heads=K,
            in_kv_features=13,
            decode=False,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
    )
    state = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    for x in state.values():
        x.set_value(jnp.asarray(normal(*x.shape, dtype=np.float64) / 4))
    foreign = {name: np.asarray(x[...]) for name, x in state.items()}
    query, key = normal(B, T, D), normal(B, S, 13)
    # sow_weights takes flax's own kernel; its other path is jax.nn's, whose softmax is float32 even here.
    call = nnx.jit(lambda module, *inputs: module(*inputs, sow_weights=True))
    output = call(module, jnp.asarray(query, jnp.float64), jnp.asarray(key, jnp.float64))
    config = AttentionConfig(
        embed_dim=D, num_heads=N, num_kv_heads=K, head_dim=H, kv_dim=13, qkv_bias=True, out_bias=True
    )
    got, _ = ours("flax.nnx.MultiHeadAttention", foreign, config, query, key)
    close(got, output, FLOAT64)


def test_flax_linen() -> None:
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    module = linen.MultiHeadDotProductAttention(
        num_heads=N, qkv_features=N * H, out_features=D, dtype="float64", param_dtype="float64"
    )
    query, key = normal(B, T, D, dtype=np.float64), normal(B, S, 13, dtype=np.float64)
    shapes = jax.eval_shape(module.init, jax.random.key(0), query, key)
    variables = jax.tree.map(lambda x: normal(*x.shape, dtype=np.float64) / 4, shapes)
    output = jax.jit(module.apply)(variables, query, key)
    foreign = {f"{name}.{kind}": x for name, both in variables["params"].items() for kind, x in both.items()}
    config = AttentionConfig(embed_dim=D, num_heads=N, head_dim=H, kv_dim=13, qkv_bias=True, out_bias=True)
    got, _ = ours("flax.linen.MultiHeadDotProductAttention", foreign, config, query, key)
    close(got, output, FLOAT64)


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


@pytest.mark.parametrize("gate", [False, True])
def test_keras(keras: Any, gate: bool) -> None:
    jax = pytest.importorskip("jax")
    layer = keras.layers.GroupQueryAttention(H, N, K, kernel_initializer="zeros", use_gate=gate)
    query, key, value = normal(B, T, D), normal(B, S, 13), normal(B, S, 13) + 1
    layer.build(query.shape, value.shape, key.shape)
    foreign = {"/".join(x.path.split("/")[-2:]): normal(*x.shape) / 4 for x in layer.weights}
    call = jax.jit(
        lambda *inputs: layer.stateless_call(list(foreign.values()), [], *inputs, return_attention_scores=True)[0]
    )
    output, weights = call(query, value, key)
    config = AttentionConfig(
        embed_dim=D,
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        kv_dim=13,
        qkv_bias=True,
        out_bias=True,
        output_gate=gate,
    )
    got, attention = ours("keras.layers.GroupQueryAttention", foreign, config, query, key, value)
    close(got, output, FLOAT32)
    close(attention, weights, FLOAT32)


# --- packages that only some environments have -----------------------------------------------------------------------

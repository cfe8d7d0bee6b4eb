"""docs/coming-from.md: the layer there and the layer here, with the same weights, give the same output."""

import numpy as np
import pytest

import gqa_numpy
from gqa_weights import LAYOUTS, to_canonical
from tests.helpers import normal

pytestmark = [pytest.mark.no_shape_checks, pytest.mark.x64_off]

B, T, S, D, N, K = 2, 5, 7, 24, 6, 2


def ours(layout: str, foreign: dict[str, np.ndarray], num_kv_heads: int = K, **settings: object):
    """The NumPy backend with another module's weights."""
    layer = gqa_numpy.GroupQueryAttention(
        D, N, num_kv_heads, qkv_bias=True, out_bias=True, dtype=np.float32, **settings
    )
    return layer.eval().load_weights(to_canonical(LAYOUTS[layout], foreign, layer.config))


def close(got: np.ndarray, expected: object) -> None:
    np.testing.assert_allclose(got, np.asarray(expected), atol=5e-6)


def test_coming_from_torch_multihead_attention():
    torch = pytest.importorskip("torch")
    mha = torch.nn.MultiheadAttention(D, N, batch_first=True).eval().requires_grad_(False)
    state = {name: x.numpy() for name, x in mha.state_dict().items()}
    attn, causal = (ours("torch.nn.MultiheadAttention", state, N, causal=c) for c in (False, True))
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    hidden = normal(B, N, T, S) > 1

    per_head = torch.from_numpy(hidden.reshape(B * N, T, S))
    output, weights = mha(*tensors, attn_mask=per_head)
    close(attn(q, k, v, ~hidden)[0], output)
    close(attn(q, k, v, ~hidden)[1].mean(1), weights)
    padding = np.arange(S) >= np.array([[4], [6]])
    close(attn(q, k, v, ~padding[:, None, None])[0], mha(*tensors, key_padding_mask=torch.from_numpy(padding))[0])
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    close(causal(q)[0], mha(tensors[0], tensors[0], tensors[0], attn_mask=future, is_causal=True)[0])


def test_coming_from_flax_multi_head_attention():
    nnx = pytest.importorskip("flax.nnx")
    mha = nnx.MultiHeadAttention(
        N, D, qkv_features=N * 8, num_kv_heads=K, decode=False, deterministic=True, rngs=nnx.Rngs(0)
    )
    state = {".".join(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(mha, nnx.Param))}
    attn, causal = (ours("flax.nnx.MultiHeadAttention", state, head_dim=8, causal=c) for c in (False, True))
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    mask = normal(B, 1, T, S) < 1
    close(attn(q, k, v, mask)[0], mha(q, k, v, mask=mask))
    close(causal(q, k, v, offset=0)[0], mha(q, k, v, is_causal=True))


def test_coming_from_keras_group_query_attention(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layer = keras.layers.GroupQueryAttention(8, N, K)
    q, k, v = normal(B, T, D), normal(B, S, D), normal(B, S, D) + 1
    mask = normal(B, T, S) < 1
    output, scores = layer(q, v, k, attention_mask=mask, return_attention_scores=True)
    paths = [x.path.split("/")[-2:] for x in layer.weights]
    state = {
        f"{'out' if owner == 'attention_output' else owner}.{kind}": np.asarray(x)
        for (owner, kind), x in zip(paths, layer.weights, strict=True)
    }
    attn, causal = (ours("flax.nnx.MultiHeadAttention", state, head_dim=8, causal=c) for c in (False, True))
    close(attn(q, k, v, mask[:, None])[0], output)
    close(attn(q, k, v, mask[:, None])[1], scores)
    close(causal(q, k, v, offset=0)[0], layer(q, v, k, use_causal_mask=True))

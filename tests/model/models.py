"""Models of every setting of `ModelConfig`, their weights, inputs and results, shared by the tests of models."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gqa_spec import AttentionConfig, ExpertsConfig, ModelConfig, RopeConfig, YarnScaling
from gqa_spec.model_config import model_weight_shapes
from tests.helpers import new_model, to_backend, to_numpy

BACKENDS = ("numpy", "torch", "jax")
B, T, V, LENGTHS = 3, 7, 37, np.array([7, 2, 5])


def attention(**settings: Any) -> AttentionConfig:
    common: dict[str, Any] = {
        "embed_dim": 13,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 10,
        "causal": True,
        "rope": RopeConfig(),
    }
    return AttentionConfig(**common | settings)


def decoder(*layers: AttentionConfig, **settings: Any) -> ModelConfig:
    return ModelConfig(attention=layers, feed_forward_size=29, **{"vocab_size": V} | settings)


CONFIGS = {
    "gemma": decoder(
        attention(window=3, qk_norm="rms_plus_one", scale=0.3),
        attention(softcap=5.0, qk_norm="rms_plus_one", rope=RopeConfig(theta=500.0)),
        norm="rms_plus_one",
        norm_placement="both",
        activation="gelu_tanh",
        tied=True,
        embedding_scale=3.7,
        logit_softcap=7.0,
        max_length=23,
    ),
    "olmo": decoder(attention(qk_norm="rms_full"), attention(rope=None), norm_placement="post", norm_eps=0.1),
    "starcoder": decoder(
        attention(qkv_bias=True, out_bias=True, window=4, sinks=True),
        attention(chunk=3, v_head_dim=11),
        norm="layer",
        norm_bias=True,
        gated=False,
        activation="gelu_tanh",
        feed_forward_bias=True,
    ),
    "layer norm without bias": decoder(
        attention(), norm="layer", norm_placement="both", feed_forward_bias=True, activation="gelu"
    ),
    "pythia": decoder(
        attention(qkv_bias=True, out_bias=True, rope=RopeConfig(rotary_dim=4)),
        attention(window=3),
        norm="layer",
        norm_bias=True,
        gated=False,
        feed_forward_bias=True,
        activation="gelu",
        parallel="own_norms",
    ),
    "cohere": decoder(
        attention(window=3),
        attention(rope=None),
        norm="layer",
        parallel="shared_norm",
        tied=True,
        logit_scale=0.3,
        residual_scale=0.7,
        logit_softcap=4.0,
    ),
    "nemotron": decoder(
        attention(),
        norm="layer_plus_one",
        norm_bias=True,
        gated=False,
        activation="relu2",
        head_bias=True,
        residual_scale=0.22,
        logit_scale=0.125,
    ),
    "mixtral": decoder(
        attention(window=3), attention(), experts=ExpertsConfig(num_experts=5, num_experts_per_token=2, expert_size=17)
    ),
    "qwen moe": decoder(
        attention(qk_norm="rms"),
        attention(),
        attention(),
        experts=ExpertsConfig(
            num_experts=7,
            num_experts_per_token=3,
            expert_size=11,
            normalise=False,
            shared_size=19,
            shared_gate=True,
            dense_layers=(1,),
        ),
    ),
    "gpt-oss": decoder(
        attention(window=3, sinks=True, qkv_bias=True, out_bias=True),
        attention(sinks=True),
        experts=ExpertsConfig(
            num_experts=3, num_experts_per_token=2, expert_size=17, bias=True, swiglu_limit=0.7, swiglu_alpha=1.7
        ),
    ),
    "shared expert of all": decoder(
        attention(),
        norm_placement="both",
        activation="gelu",
        residual_scale=0.3,
        experts=ExpertsConfig(num_experts=3, num_experts_per_token=3, expert_size=5, shared_size=7, normalise=False),
    ),
    "bidirectional": decoder(attention(causal=False, window=3), attention(causal=False, qkv_bias=True), tied=True),
    "states of vectors": decoder(attention(), vocab_size=None, input_dim=11, output="last_hidden"),
    "encoder": ModelConfig.encoder(
        embed_dim=11,
        hidden_size=24,
        num_heads=6,
        num_layers=2,
        window_size=3,
        rope=RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=5)),
    ),
}


@cache
def weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """No norm weight 1, no bias 0."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(0.1, 0.5, shape) for name, shape in model_weight_shapes(config).items()}


@cache
def model(backend: str, name: str) -> Any:
    return new_model(backend, CONFIGS[name]).load_weights(weights(CONFIGS[name]))


@cache
def batch(config: ModelConfig) -> np.ndarray:
    rng = np.random.default_rng(2)
    if config.vocab_size is not None:
        return rng.integers(0, config.vocab_size, (B, T))
    return rng.normal(size=(B, T, config.input_dim or 0))


@cache
def whole(backend: str, name: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The result on a right-padded batch, and all hidden states."""
    x, lengths = to_backend(backend, batch(CONFIGS[name])), to_backend(backend, LENGTHS)
    result, states = call(backend, model(backend, name), x, lengths)
    return to_numpy(result), [to_numpy(state) for state in states]


def call(backend: str, transformer: Any, x: Any, lengths: Any) -> Any:
    if backend != "jax":
        return transformer(x, lengths=lengths, hidden_states=True)
    from flax import nnx

    return nnx.jit(lambda m, x, n: m(x, lengths=n, hidden_states=True))(transformer, x, lengths)


def extend(backend: str, transformer: Any, x: Any, cache: Any, counts: Any) -> tuple[np.ndarray, Any]:
    arguments = transformer, to_backend(backend, x), cache, to_backend(backend, counts)
    result, longer = _jitted_extend()(*arguments) if backend == "jax" else _extend(*arguments)
    return to_numpy(result), longer


def _extend(transformer: Any, x: Any, cache: Any, counts: Any) -> Any:
    return transformer.extend(x, cache, lengths=counts)


@cache
def _jitted_extend() -> Any:
    from flax import nnx

    return nnx.jit(_extend)


def real(x: np.ndarray) -> np.ndarray:
    """The rows of real tokens, one after the other; (B, D) as it is."""
    return x if x.ndim == 2 else np.concatenate([x[row, :length] for row, length in enumerate(LENGTHS)])

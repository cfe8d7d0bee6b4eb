"""The output gate, QK-norm after RoPE and the scale of queries by position: every backend against scalar loops."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conformance.cases.compare import bound, error_of
from conformance.reference.layer import ReferenceLayer
from conformance.targets import Backend
from gqa_spec import AttentionConfig, RopeConfig
from gqa_spec.config import weight_shapes
from tests.helpers import normal, random_weights, to_backend, to_numpy

pytestmark = pytest.mark.no_shape_checks

B, T, S = 2, 7, 5
COMMON: dict[str, Any] = {
    "embed_dim": 11,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 10,
    "causal": True,
    "qkv_bias": True,
    "out_bias": True,
}
CONFIGS = {
    "gate": {"output_gate": True, "v_head_dim": 3},
    "gate without bias": {"output_gate": True, "qkv_bias": False, "rope": RopeConfig()},
    "norm after": {"qk_norm": "rms", "qk_norm_after_rope": True, "rope": RopeConfig()},
    "full norm after": {"qk_norm": "rms_full", "qk_norm_after_rope": True, "rope": RopeConfig(rotary_dim=4)},
    "scale by position": {"query_scale_beta": 0.7, "query_scale_length": 3},
    "all": {
        "qk_norm": "rms_plus_one",
        "qk_norm_after_rope": True,
        "rope": RopeConfig(pairing="interleaved"),
        "query_scale_beta": 0.7,
        "query_scale_length": 2,
        "output_gate": True,
        "window": 4,
    },
}
BACKENDS = ("numpy", "torch", "jax")
CALLS = [("whole", name) for name in CONFIGS] + [("offsets", name) for name in CONFIGS]
CALLS += [("positions", name) for name, settings in CONFIGS.items() if {"rope", "query_scale_beta"} & set(settings)]


def config_of(name: str) -> AttentionConfig:
    return AttentionConfig(**COMMON | CONFIGS[name])


def layer_of(backend: str, name: str, dtype: str = "float64") -> Any:
    """The backend's own module with random weights, in eval mode."""
    layer = Backend(backend).layer(config_of(name), dtype)
    weights = {n: x * 0.5 for n, x in random_weights(weight_shapes(config_of(name))).items()}
    layer.load({n: x.astype(np.float32 if dtype == "float32" else np.float64) for n, x in weights.items()})
    layer.module.eval()
    return layer.module


def reference(name: str, *inputs: np.ndarray, **call: Any) -> np.ndarray:
    weights = {n: x * 0.5 for n, x in random_weights(weight_shapes(config_of(name))).items()}
    return ReferenceLayer(config_of(name)).load_weights(weights)(*inputs, **call)[0]


@pytest.mark.parametrize(("call", "name"), CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_have_the_references_output(backend: str, name: str, call: str) -> None:
    x = normal(B, T, 11, dtype=np.float64)
    settings: dict[str, Any] = {"offset": np.array([0, 9])} if call == "offsets" else {}
    if call == "positions":
        settings = {"positions": np.array([[5, 0, 3, 9, 2, 2, 11], [1, 4, 4, 0, 30, 7, 6]])}
    wanted = dict(settings) | ({"key_positions": settings["positions"]} if call == "positions" else {})
    expected = reference(name, x, **wanted)
    layer = layer_of(backend, name)
    given = {key: to_backend(backend, value) for key, value in settings.items()}
    for need_weights in (True, False):
        output, _ = layer(to_backend(backend, x), need_weights=need_weights, **given)
        assert error_of(to_numpy(output), expected) <= bound("float64", 0.0)
    stages = layer.trace(to_backend(backend, x), **given)
    assert error_of(to_numpy(stages["output"]), expected) <= bound("float64", 0.0)
    present = {"gate": config_of(name).output_gate, "q_scale": config_of(name).query_scale is not None}
    assert {stage: stage in stages for stage in present} == present


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_is_whole(backend: str, name: str) -> None:
    """A chunk of unequal rows, then token by token."""
    x, layer = normal(B, T, 11, dtype=np.float64), layer_of(backend, name)
    whole = reference(name, x)
    cache = layer.init_cache(B, 9)
    lengths = to_backend(backend, np.array([4, 2]))
    first, cache = layer.extend(to_backend(backend, x[:, :4]), cache, lengths=lengths)
    np.testing.assert_allclose(to_numpy(first)[0], whole[0, :4], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(to_numpy(first)[1, :2], whole[1, :2], rtol=1e-9, atol=1e-11)
    for step in range(3):
        token = np.stack([x[0, 4 + step], x[1, 2 + step]])[:, None]
        output, cache = layer.extend(to_backend(backend, token), cache)
        expected = np.stack([whole[0, 4 + step], whole[1, 2 + step]])[:, None]
        np.testing.assert_allclose(to_numpy(output), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_autograds(name: str) -> None:
    """gqa_numpy's by hand against those that PyTorch takes of gqa_torch."""
    import torch

    x, d_output = normal(B, T, 11, dtype=np.float64), normal(B, T, 11, 1, dtype=np.float64)[..., 0]
    _, vjp = layer_of("numpy", name).vjp(x)
    gradients = vjp(d_output)
    layer, query = layer_of("torch", name), torch.from_numpy(x).requires_grad_()
    (layer(query)[0] * torch.from_numpy(d_output)).sum().backward()
    of_input = gradients["query"] + gradients["key"] + gradients["value"]
    # Relative to the largest: without RoPE, the gradient of a bias of the keys is 0.
    largest = max(float(np.abs(x).max()) for x in gradients.values())
    np.testing.assert_allclose(of_input, query.grad.numpy(), rtol=0, atol=1e-11 * largest)
    for weight in weight_shapes(config_of(name)):
        expected = layer.get_parameter(weight).grad.numpy()
        np.testing.assert_allclose(gradients[weight], expected, rtol=0, atol=1e-11 * largest, err_msg=weight)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_sixteen_bits_are_rounded_once(backend: str) -> None:
    """The gate and the scale are taken in float32: within SPEC 15's bound of gqa_numpy's own bfloat16."""
    x = normal(B, T, 11, dtype=np.float32)

    weights = {
        n: (x * 0.5).astype(ml_dtypes.bfloat16) for n, x in random_weights(weight_shapes(config_of("all"))).items()
    }
    rounded = x.astype(ml_dtypes.bfloat16)
    exact = ReferenceLayer(config_of("all")).load_weights({n: w.astype(np.float64) for n, w in weights.items()})
    expected = exact(rounded.astype(np.float64))[0]
    outputs = {}
    for name in ("numpy", backend):
        layer = Backend(name).layer(config_of("all"), "bfloat16")
        layer.load(weights)
        layer.module.eval()
        output, _ = layer.module(layer.framework.to(rounded))
        outputs[name] = np.asarray(layer.framework.back(output)).astype(np.float64)
    allowed = bound("bfloat16", error_of(outputs["numpy"], expected))
    assert error_of(outputs[backend], expected) <= allowed


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="qk_norm_after_rope: expected a qk_norm and a rope, got None"):
        AttentionConfig(embed_dim=8, num_heads=2, qk_norm_after_rope=True)
    with pytest.raises(ValueError, match="query_scale_beta, query_scale_length: expected both or neither"):
        AttentionConfig(embed_dim=8, num_heads=2, query_scale_beta=0.1)
    with pytest.raises(TypeError, match="output_gate"):
        AttentionConfig(embed_dim=8, num_heads=2, output_gate=1)  # type: ignore[arg-type]

"""Mixtures of experts: which experts a token goes to, with which weights, and what poison, ties and compilers do."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gqa_spec import ExpertsConfig
from gqa_spec.model_config import model_weight_shapes
from tests.helpers import new_model, to_backend, to_numpy
from tests.model.models import BACKENDS, CONFIGS, B, T, batch, model, whole

pytestmark = pytest.mark.no_shape_checks
LOGITS = np.log([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.1, 0.3, 0.3, 0.3]])


def routed(backend: str, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    config = ExpertsConfig(num_experts=4, num_experts_per_token=2, expert_size=3, **settings)
    route = importlib.import_module(f"gqa_{backend}.experts").route
    chosen, weights = route(to_backend(backend, LOGITS), config)
    return to_numpy(chosen), to_numpy(weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_router_by_hand(backend: str) -> None:
    """The largest logits, of equal ones the first experts; weights of all, or of the chosen alone."""
    chosen, weights = routed(backend)
    assert chosen.tolist() == [[1, 3], [0, 1], [1, 2]]
    np.testing.assert_allclose(weights, [[4 / 7, 3 / 7], [0.5, 0.5], [0.5, 0.5]], rtol=1e-12)
    chosen, weights = routed(backend, normalise=False)
    assert chosen.tolist() == [[1, 3], [0, 1], [1, 2]]
    np.testing.assert_allclose(weights, [[0.4, 0.3], [0.25, 0.25], [0.3, 0.3]], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token_by_hand(backend: str) -> None:
    """Every number of a small mixture with all its parts, computed by a scalar loop."""
    config = CONFIGS["gpt-oss"]
    experts = config.experts
    assert experts is not None
    assert (experts.swiglu_limit, experts.swiglu_alpha) == (0.7, 1.7)
    rng = np.random.default_rng(5)
    weights = {n: rng.normal(0.1, 0.5, s) for n, s in model_weight_shapes(config).items()}
    block = new_model(backend, config).load_weights(weights).blocks[1]
    x = rng.normal(size=(1, 1, 13))
    mine = {n.removeprefix("blocks.1.feed_forward."): w for n, w in weights.items() if "blocks.1.feed_forward." in n}
    logits = mine["router.weight"] @ x[0, 0] + mine["router.bias"]
    best = sorted(range(3), key=lambda number: -logits[number])[:2]
    shares = np.exp(logits[best]) / np.exp(logits[best]).sum()
    expected = np.zeros(13)
    for share, number in zip(shares, best, strict=True):
        maps = {name: (mine[f"experts.{number}.{name}.weight"], mine[f"experts.{number}.{name}.bias"])
                for name in ("gate", "up", "down")}  # fmt: skip
        gate, up = (w @ x[0, 0] + b for w, b in (maps["gate"], maps["up"]))
        hidden = [
            (max(min(u, 0.7), -0.7) + 1) * min(g, 0.7) / (1 + np.exp(-1.7 * min(g, 0.7)))
            for g, u in zip(gate, up, strict=True)
        ]
        expected += share * (maps["down"][0] @ np.array(hidden) + maps["down"][1])
    feed = block._feed_forward if backend == "numpy" else block.feed_forward
    got = to_numpy(feed(to_backend(backend, x)))[0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mixtral", "qwen moe", "gpt-oss", "shared expert of all"])
def test_a_poisoned_token_stays_with_itself(backend: str, name: str) -> None:
    """The mixture of one token does not depend on another, even where that is NaN or infinite."""
    transformer = model(backend, name)
    block = transformer.blocks[0]
    feed = block._feed_forward if backend == "numpy" else block.feed_forward
    x = np.random.default_rng(6).normal(size=(2, 5, 13))
    clean = to_numpy(feed(to_backend(backend, x)))
    poisoned = x.copy()
    poisoned[0, 3], poisoned[1, 0] = np.nan, np.inf
    with np.errstate(all="ignore"):
        got = to_numpy(feed(to_backend(backend, poisoned)))
    good = np.isfinite(poisoned).all(axis=-1)
    np.testing.assert_allclose(got[good], clean[good], rtol=1e-11, atol=1e-13)
    assert not np.isfinite(got[~good]).any()


@pytest.mark.parametrize("backend", [*BACKENDS, "vmapped torch"])
def test_an_expert_of_nan_changes_its_own_tokens_alone(backend: str) -> None:
    framework, config = backend.rsplit(maxsplit=1)[-1], CONFIGS["mixtral"]
    rng = np.random.default_rng(9)
    weights = {name: rng.normal(0.1, 0.5, shape) for name, shape in model_weight_shapes(config).items()}
    broken = {n: np.full_like(x, np.nan) if ".0.feed_forward.experts.2." in n else x for n, x in weights.items()}
    x = to_backend(framework, rng.normal(size=(4, 5, 13)))
    results = []
    for each in (weights, broken):
        block = new_model(framework, config).load_weights(each).blocks[0]
        feed = block._feed_forward if backend == "numpy" else block.feed_forward
        results.append(to_numpy(_vmapped(feed)(x) if backend == "vmapped torch" else feed(x)))
    clean, got = results
    hit = np.isnan(got).all(axis=-1)
    assert 0 < hit.sum() < hit.size
    np.testing.assert_allclose(got[~hit], clean[~hit], rtol=1e-12)


def _vmapped(feed: Any) -> Any:
    import torch

    return torch.func.vmap(lambda x: feed(x[None])[0])


@pytest.mark.parametrize("name", ["qwen moe", "gpt-oss"])
def test_compiled_and_vmapped_torch_is_the_same(name: str) -> None:
    """Where shapes may not depend on values, each expert computes all tokens."""
    import torch

    transformer = model("torch", name)
    tokens = torch.from_numpy(batch(CONFIGS[name]))
    expected = transformer(tokens)
    compiled = torch.compile(lambda x: transformer(x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), expected, rtol=1e-11, atol=1e-11)
    feed, x = transformer.blocks[0].feed_forward, torch.randn(3, 2, 4, 13, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(feed)(x), torch.stack([feed(each) for each in x]))


def test_gradients_of_torch_and_jax_agree() -> None:
    """Of the router too, through the weights of the chosen experts."""
    import jax.numpy as jnp
    import torch
    from flax import nnx

    name = "qwen moe"
    ours, theirs = model("torch", name), model("jax", name)
    tokens = batch(CONFIGS[name])
    ours.zero_grad()
    ours(torch.from_numpy(tokens)).square().sum().backward()
    gradients = nnx.grad(lambda m: jnp.square(m(jnp.asarray(tokens))).sum())(theirs)
    of_jax = nnx.to_pure_dict(gradients)["blocks"][0]["feed_forward"]
    block = ours.blocks[0].feed_forward
    np.testing.assert_allclose(of_jax["router"]["kernel"].T, block.router.weight.grad.numpy(), rtol=1e-8, atol=1e-10)
    stacked = np.stack([expert.down.weight.grad.numpy() for expert in block.experts])
    np.testing.assert_allclose(of_jax["experts"]["down_weight"], stacked, rtol=1e-8, atol=1e-10)
    assert np.abs(stacked).max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["qwen moe", "gpt-oss"])
def test_weights_are_exported_as_they_were_loaded(backend: str, name: str) -> None:
    config = CONFIGS[name]
    rng = np.random.default_rng(7)
    weights = {n: rng.normal(size=s) for n, s in model_weight_shapes(config).items()}
    exported = new_model(backend, config).load_weights(dict(reversed(weights.items()))).export_weights()
    assert set(exported) == set(weights)
    assert all((exported[n] == weights[n]).all() for n in weights)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_bfloat16_is_close(backend: str) -> None:
    """Weights and sums in float32, one rounding for each token."""
    name = "mixtral"
    config = CONFIGS[name]
    transformer = new_model(backend, config, "bfloat16")
    import ml_dtypes

    rounded = {n: (0.3 * w).astype(ml_dtypes.bfloat16) for n, w in model("numpy", name).export_weights().items()}
    block = transformer.load_weights(rounded).blocks[0]
    x = np.random.default_rng(8).normal(size=(B, T, 13)).astype(ml_dtypes.bfloat16)
    if backend == "torch":
        import torch

        with torch.no_grad():
            got = block.feed_forward(torch.from_numpy(x.astype(np.float32)).bfloat16())
        assert got.dtype == torch.bfloat16
        result = got.float().numpy()
    else:
        import jax.numpy as jnp

        result = np.asarray(block.feed_forward(jnp.asarray(x)).astype(jnp.float32))
    oracle = new_model("numpy", config).load_weights({n: w.astype(np.float64) for n, w in rounded.items()})
    expected = oracle.blocks[0]._feed_forward(x.astype(np.float64))
    assert np.abs(result - expected).max() <= 0.02 * np.abs(expected).max()


def test_the_whole_is_finite() -> None:
    for name in ("mixtral", "qwen moe", "gpt-oss", "shared expert of all"):
        assert np.isfinite(whole("numpy", name)[0]).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more than there are": ({"num_experts_per_token": 4}, "num_experts_per_token: expected at most X = 3, got 4"),
    "none": ({"num_experts": 0}, "num_experts: expected X >= 1, got 0"),
    "a limit alone": (
        {"swiglu_limit": 7.0}, "swiglu_limit, swiglu_alpha: expected both or neither, got 7.0 and None"
    ),
    "a gate of nothing": ({"shared_gate": True}, "shared_gate: expected a shared_size, got None"),
    "a layer below 0": ({"dense_layers": (-1,)}, "dense_layers: expected dense_layers >= 0, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_experts_that_make_no_sense_are_refused(name: str) -> None:
    settings, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ExpertsConfig(**{"num_experts": 3, "num_experts_per_token": 2, "expert_size": 5} | settings)


def test_a_model_that_cannot_have_experts_is_refused() -> None:
    config = CONFIGS["mixtral"]
    assert config.experts is not None
    with pytest.raises(ValueError, match=r"^experts: expected gated=True, got False: each expert is a gated feed-"):
        config.replace(gated=False)
    with pytest.raises(ValueError, match=r"^dense_layers: expected layers below 2, got 2$"):
        config.replace(experts=replace(config.experts, dense_layers=(2,)))
    with pytest.raises(ValueError, match=r"^num_experts: expected at most 100000 in all layers, got X = 50001$"):
        config.replace(experts=replace(config.experts, num_experts=50_001))
    with pytest.raises(TypeError, match=r"^experts: "):
        config.replace(experts={"num_experts": 3})


def test_a_mesh_of_jax_is_refused() -> None:
    import jax

    from gqa_jax.parallel import parallelize

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match=r"^config: expected a model without experts to place on a mesh, got X = 5$"):
        parallelize(model("jax", "mixtral"), mesh, data="data")

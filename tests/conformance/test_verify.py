"""verify: equal models are equal in every pair of backends, and each planted difference is named by its stage."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conformance.trace import models
from conformance.trace.models import Verdict, steps, verify
from conformance.trace.stages import STAGES
from gqa_spec import (
    AttentionConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    ModelConfig,
    RopeConfig,
)
from gqa_spec.config import weight_shapes
from gqa_weights.heads import convert_rope_pairing
from tests.helpers import Model, half_rows, random_model

pytestmark = pytest.mark.no_shape_checks

# N = 6, K = 2, G = 3; K * H is a multiple of 2 * N, so that rows permuted with the wrong number of heads still fit.
SIZES: dict[str, Any] = {"embed_dim": 28, "num_heads": 6, "num_kv_heads": 2, "head_dim": 12, "causal": True}
NEAR = AttentionConfig(**SIZES, qk_norm="rms_plus_one", softcap=20.0, scale=0.3, window=5, rope=RopeConfig())
FAR = AttentionConfig(
    **SIZES,
    qk_norm="rms",
    window=600,
    qkv_bias=True,
    out_bias=True,
    sinks=True,
    rope=RopeConfig(
        theta=1e6,
        scaling=Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
    ),
)
PLAIN = AttentionConfig(**SIZES, chunk=700)
CONFIG = ModelConfig(attention=(NEAR, FAR, PLAIN), feed_forward_size=37, vocab_size=41, norm="rms_plus_one", tied=True)


new_model = partial(random_model, CONFIG)


def changed(layer: int, **settings: Any) -> ModelConfig:
    layers = list(CONFIG.attention)
    layers[layer] = replace(layers[layer], **settings)
    return replace(CONFIG, attention=tuple(layers))


def differing(a: Model, b: Model, **options: Any) -> list[Verdict]:
    return [verdict for verdict in verify(a, b, **options) if not verdict.same]


@pytest.mark.parametrize(
    ("backends", "dtype"),
    [(("numpy", "torch"), "float64"), (("torch", "jax"), "float32"), (("numpy", "numpy"), "float32")],
)
def test_a_model_equals_itself(backends, dtype):
    done: list[int] = []
    verdicts = list(verify(new_model(), new_model(), backends=backends, dtype=dtype, done=done.append))
    assert [verdict for verdict in verdicts if not verdict.same] == []
    assert [v.place for v in verdicts] == ["sizes", *(f"layer {i} attention" for i in range(3)), "settings"]
    assert sum(done) == steps(new_model(), new_model()) == 4
    if backends != ("numpy", "numpy"):  # the same numbers went through two implementations
        assert any(verdict.error > 0 for verdict in verdicts)


def k_permuted_with_query_heads(w):
    """Interleaved rows that were made half ones with N = 6 heads, although there are K = 2."""
    interleaved = np.empty_like(w)
    interleaved[half_rows(24, 2)] = w
    return interleaved[half_rows(24, 6)]


def tiled(w):
    """Query head n written where n % K expects it: 0 3 1 4 2 5."""
    return np.concatenate([w[12 * n : 12 * n + 12] for n in (0, 3, 1, 4, 2, 5)])


LAYER = {
    "k permuted with N": (1, "k_proj.weight", k_permuted_with_query_heads, "k_proj", "with 6 heads instead of 2"),
    "q not permuted": (1, "q_proj.weight", lambda w: w[half_rows(72, 6)], "q_proj", "the other way"),
    "query heads tiled": (2, "q_proj.weight", tiled, "q_proj", "tiled (n % K) instead of grouped"),
    "a query bias": (1, "q_proj.bias", lambda w: w * 1.001, "q_proj", ""),
    "a value bias": (1, "v_proj.bias", lambda w: w + 1e-3, "v_proj", ""),
    "norm without its 1": (0, "q_norm.weight", lambda w: w + 1, "q_norm", "1 more than A's"),
    "norm with a 1": (0, "k_norm.weight", lambda w: w - 1, "k_norm", "1 less than A's"),
    "a sink": (1, "sinks", lambda w: w + 1e-3, "weights", ""),
    "output": (0, "o_proj.weight", lambda w: w[:, ::-1], "output", ""),
    "output bias": (1, "o_proj.bias", lambda w: w + 1e-3, "output", ""),
}


@pytest.mark.parametrize("case", LAYER)
def test_a_changed_weight_is_named_by_its_stage(case):
    layer, name, change, stage, hint = LAYER[case]
    a, b = new_model(), new_model()
    b.weights[f"blocks.{layer}.attention.{name}"] = np.ascontiguousarray(
        change(b.weights[f"blocks.{layer}.attention.{name}"])
    )
    (found,) = differing(a, b)
    assert (found.place, found.stage) == (f"layer {layer} attention", stage)
    assert found.error > 1e-6
    assert hint in found.reason
    assert "B in gqa_torch" in found.reason


SETTINGS = {
    "window near": (0, {"window": 6}, "masked"),
    "window far": (1, {"window": 601}, "masked"),
    "window gone": (1, {"window": None}, "masked"),
    "chunk": (2, {"chunk": 701}, "masked"),
    "causal": (2, {"causal": False}, "masked"),
    "scale": (0, {"scale": 0.31}, "scores"),
    "softcap": (0, {"softcap": 21.0}, "capped"),
    "no softcap": (0, {"softcap": None}, "capped"),
    "theta": (0, {"rope": RopeConfig(theta=9_999.0)}, "q_rope"),
    "scaling forgotten": (1, {"rope": RopeConfig(theta=1e6)}, "q_rope"),
    "norm kind": (0, {"qk_norm": "rms"}, "q_norm"),
    "norm eps": (0, {"qk_norm_eps": 1e-5}, "q_norm"),
    "query scale by position": (2, {"query_scale_beta": 0.1, "query_scale_length": 500}, "q_scale"),
    "pairing": (0, {"rope": RopeConfig(pairing="interleaved")}, "q_proj"),  # the rows are not those of that pairing
    "dynamic scaling, visible past its length alone": (
        0,
        {"rope": RopeConfig(scaling=DynamicScaling(factor=2.0, original_max_position_embeddings=99))},
        "q_rope",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_changed_setting_is_named_by_its_stage(case):
    layer, settings, stage = SETTINGS[case]
    (found,) = differing(new_model(), Model(changed(layer, **settings), new_model().weights))
    assert (found.place, found.stage) == (f"layer {layer} attention", stage)
    assert next(iter(settings)) in found.reason or "rope" in settings


def test_both_are_brought_to_one_pairing():
    a = new_model()
    layers, weights = list(CONFIG.attention), dict(a.weights)
    for i in (0, 1):
        names = {f"blocks.{i}.attention.{name}": name for name in weight_shapes(layers[i])}
        converted, layers[i] = convert_rope_pairing({n: weights[m] for m, n in names.items()}, layers[i], "interleaved")
        weights |= {m: converted[n] for m, n in names.items()}
    b = Model(replace(CONFIG, attention=tuple(layers)), weights)
    assert layers[0].rope is not None
    assert layers[0].rope.pairing == "interleaved"
    assert not np.array_equal(
        weights["blocks.0.attention.k_proj.weight"], a.weights["blocks.0.attention.k_proj.weight"]
    )
    assert differing(a, b) == []


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_rounded_port_equals_what_it_was_rounded_from(dtype):
    a = new_model()
    b = Model(a.config, {name: x.astype(dtype) for name, x in a.weights.items()})
    assert differing(a, b) == []
    name = "blocks.1.attention.v_proj.weight"
    b.weights[name] = b.weights[name].copy()
    b.weights[name][3, 5] *= dtype(1.02)
    assert [found.stage for found in differing(a, b)] == ["v_proj"]


def test_weights_and_settings_outside_attention_are_compared():
    a, b = new_model(), new_model()
    b.weights["blocks.1.feed_forward.up.weight"] = a.weights["blocks.1.feed_forward.up.weight"] * np.float32(1.001)
    b.weights["norm.weight"] = a.weights["norm.weight"] + np.float32(1)
    assert [(v.place, v.stage) for v in differing(a, b)] == [
        ("blocks.1.feed_forward.up.weight", "weight"),
        ("norm.weight", "weight"),
    ]
    settings = Model(replace(CONFIG, norm_eps=1e-5, max_length=99), a.weights)
    (found,) = differing(a, settings)
    assert (found.place, found.stage) == ("settings", "norm_eps")


def test_a_tied_head_equals_its_copy():
    a, b = new_model(), Model(replace(CONFIG, tied=False), dict(new_model().weights))
    b.weights["head.weight"] = b.weights["embed.weight"]
    assert differing(a, b) == []
    b.weights["head.weight"] = b.weights["embed.weight"] * 2
    assert [found.place for found in differing(a, b)] == ["head.weight"]


def test_models_of_other_sizes():
    fewer = replace(CONFIG, attention=CONFIG.attention[:2])
    found = differing(
        new_model(),
        Model(fewer, {n: x for n, x in new_model().weights.items() if "blocks.2" not in n}),
    )
    assert (found[0].place, found[0].stage) == ("sizes", "num_layers")
    assert all(verdict.place.startswith("blocks.2.") for verdict in found[1:])
    pooled = random_model(replace(CONFIG, attention=tuple(replace(c, num_kv_heads=1) for c in CONFIG.attention)))
    assert {v.stage for v in differing(new_model(), pooled) if "attention" in v.place.split()} <= {"q_proj", "k_proj"}
    wider = random_model(
        replace(CONFIG, attention=tuple(replace(c, embed_dim=29, kv_dim=29) for c in CONFIG.attention))
    )
    found = differing(new_model(), wider)
    assert (found[0].place, found[0].stage) == ("sizes", "embed_dim")
    assert not any("attention" in verdict.place.split() for verdict in found)  # no input fits both


def test_every_stage_can_be_named():
    named = {case[3] for case in LAYER.values()} | {case[2] for case in SETTINGS.values()}
    # q_rope comes before k_rope, weights before logsumexp and context, whatever is changed; gate is no stage of CONFIG.
    assert set(STAGES) - named == {"k_rope", "logsumexp", "context", "gate"}


# --- stored weights, bit for bit -------------------------------------------------------------------------------------

K_PROJ = "blocks.1.attention.k_proj.weight"
UP = "blocks.1.feed_forward.up.weight"


def spoiled(name: str, change: Any) -> Model:
    """A copy of the model with one weight changed in place."""
    model = random_model(CONFIG)
    model.weights[name] = np.array(change(model.weights[name].copy()))
    return model


def put(value: float) -> Any:
    def change(w: np.ndarray) -> np.ndarray:
        w[3, 5] = value
        return w

    return change


def one_bit(w: np.ndarray) -> np.ndarray:
    w.view(np.uint32)[3, 5] ^= 1
    return w


SPOILED = {
    "a bit": (one_bit, "1 of {total} numbers differ"),
    "NaN": (put(np.nan), "B holds 1 that are not finite"),
    "inf": (put(np.inf), "B holds 1 that are not finite"),
    "a large number": (put(1e13), "1 of {total} numbers differ"),
    "the sign of a zero": (put(-0.0), "1 of {total} numbers differ"),
    "a row negated": (lambda w: np.concatenate([-w[:1], w[1:]]), "of {total} numbers differ"),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", [K_PROJ, UP])
@pytest.mark.parametrize("case", SPOILED)
def test_stored_weights_are_compared_bit_for_bit(case: str, name: str, exact: bool) -> None:
    change, said = SPOILED[case]
    a = random_model(CONFIG) if case != "the sign of a zero" else spoiled(name, put(0.0))
    b = spoiled(name, change)
    (found,) = differing(a, b, exact=exact)
    assert said.format(total=f"{b.weights[name].size:,}") in found.reason
    assert found.place == ("layer 1 attention" if name == K_PROJ else UP)
    if exact:
        assert found.stage == ("stored weights" if name == K_PROJ else "weight")


def test_exact_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "layer_traces", None)
    assert differing(random_model(CONFIG), random_model(CONFIG), exact=True) == []
    theirs = Model(changed(0, scale=0.31), random_model(CONFIG).weights)
    (found,) = differing(random_model(CONFIG), theirs, exact=True)
    assert (found.place, found.stage, found.reason) == ("layer 0 attention", "settings", "scale 0.3 in A, 0.31 in B")


def test_numbers_that_are_not_finite_on_both_sides_are_named() -> None:
    verdicts = list(verify(spoiled(K_PROJ, put(np.nan)), spoiled(K_PROJ, put(np.nan))))
    assert all(verdict.same for verdict in verdicts)
    (named,) = (verdict.reason for verdict in verdicts if verdict.reason)
    assert named == "k_proj.weight: A holds 1 that are not finite, B holds 1 that are not finite"


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("field", ["short_factor", "long_factor"])
def test_factors_of_rope_that_few_inputs_reach_are_compared(field: str, exact: bool) -> None:
    factors = {"short_factor": (1.0,) * 6, "long_factor": (2.0,) * 6}
    other = {**factors, field: (*factors[field][:5], factors[field][5] + 1e-4)}

    def config(factors: dict[str, Any]) -> ModelConfig:
        scaling = LongropeScaling(**factors, original_max_position_embeddings=64, factor=4.0)
        return changed(0, rope=RopeConfig(scaling=scaling))

    (found,) = differing(random_model(config(factors)), random_model(config(other)), exact=exact)
    assert found.place == "layer 0 attention"
    assert found.stage == ("settings" if exact else "q_rope")


def test_different_ways_to_write_one_setting_are_equal() -> None:
    """An explicit scale, and a scaling as one divisor for each frequency, as a GGUF file has it."""
    divisors = LongropeScaling(
        short_factor=(8.0,) * 6,
        long_factor=(8.0,) * 6,
        original_max_position_embeddings=64,
        factor=1.0,
        attention_factor=1.0,
    )
    a = random_model(changed(1, scale=12**-0.5, rope=RopeConfig(scaling=LinearScaling(factor=8.0))))
    b = Model(changed(1, rope=RopeConfig(scaling=divisors)), a.weights)
    assert differing(a, b, exact=True) == []
    assert differing(a, b) == []


def test_a_port_between_the_two_16_bit_formats_equals_its_source() -> None:
    a = random_model(CONFIG, ml_dtypes.bfloat16)
    b = Model(a.config, {name: x.astype(np.float16) for name, x in a.weights.items()})
    assert differing(a, b) == differing(b, a) == []

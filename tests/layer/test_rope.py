"""RoPE against transformers, which nobody here wrote, and the three backends against each other, bit for bit."""

import dataclasses

import numpy as np
import pytest

from conformance.cases.compare import error_of
from conformance.targets import BACKENDS, Backend
from gqa_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)

ORIGINAL = 64
ROTARY = 24
SHORT, LONG = (tuple(np.linspace(1, end, ROTARY // 2).round(3)) for end in (1.5, 40))
YARN = YarnScaling(factor=32.0, original_max_position_embeddings=ORIGINAL)
SCALINGS = {
    "none": None,
    "linear": LinearScaling(factor=4.0),
    "dynamic": DynamicScaling(factor=3.0, original_max_position_embeddings=ORIGINAL),
    "yarn": YARN,
    # transformers' ramp is float32: at factor 32 its own rounding shows as 1.1e-6 in one frequency of this one.
    "yarn, not truncated": dataclasses.replace(YARN, truncate=False, factor=4.0),
    "yarn, attention_factor": dataclasses.replace(YARN, attention_factor=1.7),
    "yarn, mscale": dataclasses.replace(YARN, mscale=0.7, mscale_all_dim=1.3),
    "yarn, mscale = mscale_all_dim": dataclasses.replace(YARN, mscale=1.0, mscale_all_dim=1.0),
    "yarn, betas": dataclasses.replace(YARN, beta_fast=8.0, beta_slow=2.0),
    "llama3": Llama3Scaling(
        factor=8.0, original_max_position_embeddings=ORIGINAL, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "longrope": LongropeScaling(
        short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=ORIGINAL, factor=32.0
    ),
    "longrope, attention_factor": LongropeScaling(
        short_factor=SHORT,
        long_factor=LONG,
        original_max_position_embeddings=ORIGINAL,
        factor=32.0,
        attention_factor=1.2,
    ),
}
KINDS = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    YarnScaling: "yarn",
    Llama3Scaling: "llama3",
    LongropeScaling: "longrope",
}
LENGTHS = (7, ORIGINAL, ORIGINAL + 1, 40 * ORIGINAL)


def hugging_face(rope, length):
    """inv_freq and attention factor as transformers computes them, from a config of its own."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = KINDS[type(rope.scaling)]
    fields = {name: x for name, x in dataclasses.asdict(rope.scaling).items() if x is not None}
    fields = {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}
    parameters = {"rope_type": kind, "rope_theta": rope.theta, "partial_rotary_factor": ROTARY / 32, **fields}
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        head_dim=32,
        max_position_embeddings=ORIGINAL,
        rope_parameters=parameters,
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return inv_freq.numpy(), factor


def ours(rope, length, backend="numpy"):
    module = Backend(backend).module.layer.rope
    return np.asarray(module.inv_freq(rope, ROTARY, length)), module.attention_factor(rope)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "none"])
def test_frequencies_are_those_of_transformers(name, theta, length):
    rope = RopeConfig(theta=theta, rotary_dim=ROTARY, scaling=SCALINGS[name])
    expected, expected_factor = hugging_face(rope, length)
    got, factor = ours(rope, length)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_bit_equal_in_the_backends(name, length):
    rope = RopeConfig(theta=1e5, rotary_dim=ROTARY, scaling=SCALINGS[name])
    found = {backend: ours(rope, length, backend) for backend in BACKENDS}
    assert all(inv_freq.dtype == np.float32 for inv_freq, _ in found.values())
    assert len({inv_freq.tobytes() for inv_freq, _ in found.values()}) == 1
    assert len({factor for _, factor in found.values()}) == 1


def test_scalings_differ_and_depend_on_length_where_they_should():
    """Each scaling's frequencies are its own; dynamic NTK and LongRoPE change past the original context, no other."""
    frequencies = {
        name: [ours(RopeConfig(rotary_dim=ROTARY, scaling=s), length)[0] for length in (ORIGINAL, ORIGINAL + 1)]
        for name, s in SCALINGS.items()
    }
    for name, (within, past) in frequencies.items():
        assert np.array_equal(within, past) == (not name.startswith(("dynamic", "longrope"))), name
    distinct = {past.tobytes() for _, past in frequencies.values()}
    assert len(distinct) == len(SCALINGS) - 4  # attention factors and mscales leave frequencies alone


@pytest.mark.parametrize("name", ["none", "yarn", "longrope"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rotation_far_out_is_that_of_transformers(backend, name, dtype):
    """Positions past 8000 and past the original context, the same frequencies fed to both."""
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rope = RopeConfig(theta=1e4, scaling=SCALINGS[name])
    if name == "longrope":
        rope = dataclasses.replace(rope, rotary_dim=ROTARY)
    size = ROTARY
    positions = np.array([[0, 63, 64, 8001, 32000], [5, 4, 3, 2, 131071]])
    x = np.random.default_rng(0).normal(size=(2, 3, 5, size)).astype(dtype)
    inv_freq, factor = ours(rope, 131072)
    angles = positions[..., None].astype(dtype) * inv_freq.astype(dtype)
    cos, sin = (
        torch.from_numpy(f(np.concatenate([angles, angles], -1)) * np.dtype(dtype).type(factor))
        for f in (np.cos, np.sin)
    )
    expected, _ = apply_rotary_pos_emb(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    to, back = backend.framework.to, backend.framework.back
    got = back(backend.module.layer.rope.rotate(to(x), to(positions), rope, 131072))
    assert got.dtype == x.dtype
    assert error_of(got, expected.numpy()) <= (1e-12 if dtype == "float64" else 4 * 2.0**-23)


def test_partial_rotary_leaves_the_rest_alone(backend):
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 11))
    to, back = backend.framework.to, backend.framework.back
    got = back(backend.module.layer.rope.rotate(to(x), to(np.arange(5)), RopeConfig(rotary_dim=6), 5))
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
    assert not np.isclose(got[:, :, 1:, :6], x[:, :, 1:, :6]).any()


def test_scores_depend_on_relative_positions_only(backend):
    """The point of RoPE: moving queries and keys by the same number of positions changes nothing."""
    options = backend.framework.options("float64")
    layer = backend.module.GroupedQueryAttention(24, 6, 2, rope=RopeConfig(), **options)
    to, back = backend.framework.to, backend.framework.back
    x = to(np.random.default_rng(0).normal(size=(2, 7, 24)))
    here = layer(x)[0]
    there = layer(x, positions=to(np.arange(7) + 1000), key_positions=to(np.arange(7) + 1000))[0]
    assert error_of(back(there), back(here)) <= 1e-11
    apart = layer(x, x, positions=to(np.arange(7) + 1000))[0]
    assert error_of(back(apart), back(here)) > 1e-3


def test_keys_have_the_positions_of_queries_in_self_attention(backend):
    """SPEC 10: key_positions defaults to positions where no key is given, else to j."""
    layer = backend.module.GroupedQueryAttention(24, 6, 2, rope=RopeConfig(), **backend.framework.options("float64"))
    to, back = backend.framework.to, backend.framework.back
    x, places = to(np.random.default_rng(0).normal(size=(2, 7, 24))), to(np.array([5, 6, 9, 30, 31, 40, 41]))
    both = back(layer(x, positions=places, key_positions=places)[0])
    np.testing.assert_array_equal(back(layer(x, positions=places)[0]), both)
    np.testing.assert_array_equal(back(layer.trace(x, positions=places)["output"]), both)
    counted = back(layer(x, positions=places, key_positions=to(np.arange(7)))[0])
    np.testing.assert_array_equal(back(layer(x, x, positions=places)[0]), counted)
    assert error_of(counted, both) > 1e-3


def test_the_gradient_has_the_same_default_positions():
    layer = Backend("numpy").module.GroupedQueryAttention(24, 6, 2, rope=RopeConfig())
    rng, places = np.random.default_rng(0), np.array([5, 6, 9, 30, 31, 40, 41])
    x, d_output = rng.normal(size=(2, 2, 7, 24))
    gradients = layer.vjp(x, positions=places)[1](d_output)
    expected = layer.vjp(x, positions=places, key_positions=places)[1](d_output)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(gradients[name], gradient, err_msg=name)


def test_rope_length_is_fixed_by_the_caller(backend):
    """Dynamic NTK: a pass of 7 positions in a context of 1000 uses that context's frequencies."""
    rope = RopeConfig(scaling=SCALINGS["dynamic"])
    layer = backend.module.GroupedQueryAttention(
        24, 3, 3, rope=rope, causal=True, **backend.framework.options("float64")
    )
    to, back = backend.framework.to, backend.framework.back
    x = to(np.random.default_rng(0).normal(size=(2, 7, 24)))
    default, short, long = layer(x), layer(x, rope_length=7), layer(x, rope_length=1000)
    np.testing.assert_array_equal(back(default[0]), back(short[0]))
    assert error_of(back(long[0]), back(short[0])) > 1e-6

"""Head surgery: what must stay the same does, in values, bits and results; what is lossy is measured."""

import doctest
from fractions import Fraction
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformance.cases.compare import error_of
from conformance.cases.inputs import Call
from conformance.targets import Backend
from gqa_spec import AttentionConfig, LongropeScaling, RopeConfig
from gqa_weights import heads, weight_shapes
from tests.helpers import assert_same_bits, random_weights

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
B, T, S, D, E, Hv = 2, 3, 7, 11, 13, 5
H = 10  # five pairs: with two, the permutation would be its own inverse
KINDS = {
    "biases and sinks": {"qkv_bias": True, "out_bias": True, "sinks": True},
    "norm of each head": {"qk_norm": "rms", "rope": RopeConfig(rotary_dim=6), "causal": True},
    "norm of each head, 1 + w": {"qk_norm": "rms_plus_one", "qkv_bias": True, "window": 2},
    "full-width norm": {"qk_norm": "rms_full", "qkv_bias": True, "rope": RopeConfig(), "softcap": 3.0},
}
SLICEABLE = [kind for kind in KINDS if kind != "full-width norm"]


def layer_config(N, K, **kind):
    return AttentionConfig(embed_dim=D, num_heads=N, num_kv_heads=K, head_dim=H, v_head_dim=Hv, kv_dim=E, **kind)


def results(weights, config, backend="numpy"):
    """Output and weights of a float64 layer on an input that depends on nothing but D and E."""
    rng = np.random.default_rng(1)
    layer = Backend(backend).layer(config, "float64")
    layer.load(weights)
    return layer(Call(rng.normal(size=(B, T, D)), rng.normal(size=(B, S, E)), None, None, {}))


def assert_same_results(got, expected):
    for quantity, a, b in zip(("output", "weights"), got, expected, strict=True):
        assert a.shape == b.shape, quantity
        assert error_of(a, b) <= 1e-12, quantity


counts = st.tuples(*[st.integers(1, 4)] * 3).map(lambda t: (t[0] * t[1] * t[2], t[0] * t[1], t[0]))  # N, K, K'


def over_head_counts(test):
    """N query heads, K KV heads and K' that divides K: small ones, and those that bugs have hidden behind."""
    for N, K, pooled in [(8, 2, 1), (64, 8, 2), (12, 12, 3), (12, 6, 2), (9, 3, 1)]:
        test = example((N, K, pooled))(test)
    return settings(max_examples=15, deadline=None)(given(counts)(test))


# --- pool and expand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [*product(KINDS, DTYPES)])
@over_head_counts
def test_expand_then_pool_is_the_identity(kind, dtype, sizes):
    N, K, fewer = sizes
    check_expand_then_pool(layer_config(N, fewer, **KINDS[kind]), dtype, K)
    check_expand_then_pool(layer_config(N, K, **KINDS[kind]), dtype, N)


def check_expand_then_pool(config, dtype, more, methods=("mean", "first")):
    weights = random_weights(weight_shapes(config), dtype)
    weights["k_proj.weight"][0, :2] = -0.0, 0.0
    expanded, wide = heads.expand_kv_heads(weights, config, more)
    assert wide.num_kv_heads == more
    assert {name: x.shape for name, x in expanded.items()} == weight_shapes(wide)
    for method in methods:
        pooled, narrow = heads.pool_kv_heads(expanded, wide, config.num_kv_heads, method)
        assert narrow == config
        assert_same_bits(pooled, weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_that_are_nearly_equal_pool_to_one_of_them(dtype):
    """One ulp apart: the mean of three must not leave their range, as a plain sum in the same dtype may."""
    config = layer_config(3, 3)
    weights = random_weights(weight_shapes(config), dtype)
    head = np.abs(weights["v_proj.weight"][:Hv]) + weights["v_proj.weight"].dtype.type(1)
    above = (head.view(f"u{head.itemsize}") + 1).view(head.dtype)
    weights["v_proj.weight"] = np.concatenate([head, above, above])
    pooled, _ = heads.pool_kv_heads(weights, config, 1)
    assert np.array_equal(pooled["v_proj.weight"], above)


@pytest.mark.parametrize(("kind", "dtype"), [*product(KINDS, DTYPES)])
@settings(max_examples=5, deadline=None)
@given(counts)
@example((8, 4, 2))
@example((12, 12, 3))
def test_pooling_is_the_mean_of_neighbours(kind, dtype, sizes):
    check_pooling_is_the_mean(layer_config(*sizes[:2], **KINDS[kind]), dtype, sizes[2])


def check_pooling_is_the_mean(config, dtype, fewer):
    """Against exact fractions, one number after the other: one rounding to the dtype, and those of float64, off."""
    weights = random_weights(weight_shapes(config), dtype)
    pooled, narrow = heads.pool_kv_heads(weights, config, fewer)
    assert {name: x.shape for name, x in pooled.items()} == weight_shapes(narrow)
    group = config.num_kv_heads // fewer
    per_head = {"k_proj.weight": H, "k_proj.bias": H, "v_proj.weight": Hv, "v_proj.bias": Hv}
    if config.qk_norm == "rms_full":
        per_head["k_norm.weight"] = H
    for name in weights.keys() & per_head.keys():
        size = per_head[name]
        flat, found = (x.reshape(len(x), -1)[:, 0] for x in (weights[name], pooled[name]))
        roundings = 0.5001 * np.abs(np.spacing(found)).astype(float)  # ml_dtypes goes to bfloat16 through float32
        for head, row in product(range(fewer), range(size)):
            members = [Fraction(float(flat[(head * group + g) * size + row])) for g in range(group)]
            error = abs(Fraction(float(found[head * size + row])) - sum(members) / group)
            allowed = roundings[head * size + row] + 4 * 2.0**-52 * float(max(map(abs, members)))
            assert error <= allowed, (name, head, row)
    assert_same_bits(*({name: w[name] for name in weights if name not in per_head} for w in (pooled, weights)))


def test_first_takes_the_first_of_each_group():
    config = layer_config(12, 6, **KINDS["biases and sinks"])
    weights = random_weights(weight_shapes(config))
    pooled, _ = heads.pool_kv_heads(weights, config, 2, "first")
    for name, size in (("k_proj.weight", H), ("v_proj.bias", Hv)):
        kept = np.concatenate([weights[name][:size], weights[name][3 * size : 4 * size]])
        np.testing.assert_array_equal(pooled[name], kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_heads_have_the_scale_of_the_old_and_follow_the_generator(dtype):
    config = AttentionConfig(embed_dim=251, num_heads=8, head_dim=64, qkv_bias=True)
    weights = {
        name: (x.astype(np.float64) * 3 + 5).astype(dtype)
        for name, x in random_weights(weight_shapes(config), dtype).items()
    }
    first, again, other = (
        heads.pool_kv_heads(weights, config, 4, "random", np.random.default_rng(seed))[0] for seed in (0, 0, 1)
    )
    assert_same_bits(first, again)
    for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias"):
        new, old = first[name].astype(np.float64), weights[name].astype(np.float64)
        assert first[name].dtype == dtype
        assert not np.array_equal(first[name], other[name])
        assert not np.isin(new, old[: len(new)]).all()
        slack = 6 * old.std() * new.size**-0.5
        assert abs(new.mean() - old.mean()) < slack
        assert abs(new.std() - old.std()) < slack
    assert_same_bits({"q": first["q_proj.weight"]}, {"q": weights["q_proj.weight"]})


@pytest.mark.parametrize("kind", KINDS)
@over_head_counts
def test_an_expanded_layer_computes_the_same(kind, sizes):
    check_expanded_computes_the_same(layer_config(*sizes[:2], **KINDS[kind]))


def check_expanded_computes_the_same(config, backend="numpy"):
    weights = random_weights(weight_shapes(config))
    assert_same_results(results(*heads.expand_kv_heads(weights, config), backend), results(weights, config, backend))


def test_an_expanded_layer_computes_the_same_in_every_backend(backend):
    check_expanded_computes_the_same(layer_config(8, 2, **KINDS["biases and sinks"]), backend.name)


# --- ranks -----------------------------------------------------------------------------------------------------------


def ranks_of(N):
    return [ranks for ranks in range(1, N + 1) if N % ranks == 0]


@pytest.mark.parametrize("kind", SLICEABLE)
@pytest.mark.parametrize(("N", "K"), [(8, 2), (12, 3), (12, 12), (6, 1)])
def test_the_ranks_add_up_to_the_layer(kind, N, K):
    for ranks in ranks_of(N):
        check_ranks_add_up(layer_config(N, K, **KINDS[kind]), ranks)


def test_the_ranks_add_up_to_the_layer_at_64_and_8():
    check_ranks_add_up(layer_config(64, 8, **KINDS["biases and sinks"]), 16)


def check_ranks_add_up(config, ranks):
    weights = random_weights(weight_shapes(config))
    parts = [heads.slice_heads(weights, config, rank, ranks) for rank in range(ranks)]
    for part, narrow in parts:
        assert {name: x.shape for name, x in part.items()} == weight_shapes(narrow)
        assert narrow.num_heads == config.num_heads // ranks
    outputs, attention_weights = zip(*(results(*part) for part in parts), strict=True)
    assert_same_results((sum(outputs), np.concatenate(attention_weights, axis=1)), results(weights, config))


def test_a_rank_holds_no_more_kv_heads_than_it_must():
    def held(N, K, ranks):
        config = layer_config(N, K)
        return heads.slice_heads(random_weights(weight_shapes(config)), config, 0, ranks)[1].num_kv_heads

    assert [held(8, 2, ranks) for ranks in (1, 2, 4, 8)] == [2, 1, 1, 1]
    assert held(12, 6, 4) == 3  # query heads 0, 1, 2 read KV heads 0, 0, 1: no even sharing without one twice


@pytest.mark.parametrize(("N", "K", "ranks", "expected"), [(8, 2, 8, 8), (8, 2, 4, 4), (8, 4, 2, 4), (12, 6, 4, 12)])
def test_replication_shares_out_evenly(N, K, ranks, expected):
    config = layer_config(N, K, **KINDS["full-width norm"])
    weights = random_weights(weight_shapes(config))
    replicated, wide = heads.replicate_kv_heads(weights, config, ranks)
    assert wide.num_kv_heads == expected
    assert_same_results(results(replicated, wide), results(weights, config))


# --- RoPE pairing ----------------------------------------------------------------------------------------------------

ROPES = {
    "whole head": RopeConfig(),
    "partial": RopeConfig(rotary_dim=6),
    "scaled pair by pair": RopeConfig(
        scaling=LongropeScaling(
            short_factor=(1.0, 2.0, 1.5, 3.0, 1.2),
            long_factor=(9.0,) * 5,
            original_max_position_embeddings=64,
            factor=2,
        )
    ),
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "K"), [(8, 2), (6, 6), (64, 8)])
def test_another_pairing_computes_the_same(kind, rope, N, K):
    check_pairing_computes_the_same(layer_config(N, K, **KINDS[kind] | {"rope": ROPES[rope]}))


def check_pairing_computes_the_same(config):
    weights = random_weights(weight_shapes(config))
    paired, other = heads.convert_rope_pairing(weights, config, "interleaved")
    assert other.rope.pairing == "interleaved"
    assert not np.array_equal(paired["k_proj.weight"], weights["k_proj.weight"])
    assert_same_results(results(paired, other), results(weights, config))


@pytest.mark.parametrize(("rope", "dtype"), [*product(ROPES, DTYPES)])
def test_pairing_there_and_back_is_the_identity(rope, dtype):
    config = layer_config(8, 2, qkv_bias=True, qk_norm="rms_full", rope=ROPES[rope])
    weights = random_weights(weight_shapes(config), dtype)
    back, same = heads.convert_rope_pairing(*heads.convert_rope_pairing(weights, config, "interleaved"), "half")
    assert same == config
    assert_same_bits(back, weights)
    untouched, same = heads.convert_rope_pairing(weights, config, "half")
    assert same == config
    assert_same_bits(untouched, weights)


def test_the_paired_rows_are_those_of_spec_10():
    config = layer_config(1, 1, rope=RopeConfig(rotary_dim=6))
    weights = random_weights(weight_shapes(config))
    weights["q_proj.weight"][:, 0] = np.arange(H)
    paired, _ = heads.convert_rope_pairing(weights, config, "interleaved")
    assert paired["q_proj.weight"][:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 7, 8, 9]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_modified(kind):
    config = layer_config(8, 4, **KINDS[kind] | {"rope": RopeConfig()})
    weights = random_weights(weight_shapes(config))
    for x in weights.values():
        x.flags.writeable = False
    heads.pool_kv_heads(weights, config, 2)
    heads.pool_kv_heads(weights, config, 2, "random", np.random.default_rng(0))
    heads.expand_kv_heads(weights, config)
    heads.convert_rope_pairing(weights, config, "interleaved")
    if kind in SLICEABLE:
        heads.slice_heads(weights, config, 1, 8)
    assert_same_bits(weights, random_weights(weight_shapes(config)))


GROUPED = layer_config(12, 6, rope=RopeConfig())
FULL_WIDTH = layer_config(8, 8, qk_norm="rms_full")
REFUSED = [
    (ValueError, "num_kv_heads: expected K' to divide K = 6, got 4", "pool_kv_heads", GROUPED, (4,)),
    (ValueError, "num_kv_heads: expected K' >= 1, got 0", "pool_kv_heads", GROUPED, (0,)),
    (TypeError, "num_kv_heads: expected an integer, got 2.0", "pool_kv_heads", GROUPED, (2.0,)),
    (ValueError, "method: expected mean, first, random, got 'median'", "pool_kv_heads", GROUPED, (2, "median")),
    (TypeError, "rng: expected Generator, got NoneType", "pool_kv_heads", GROUPED, (2, "random")),
    *(
        (
            ValueError,
            f"num_kv_heads: expected K = 6 to divide K', and K' to divide N = 12, got {bad}",
            "expand_kv_heads",
            GROUPED,
            (bad,),
        )
        for bad in (3, 9, 18, 24)
    ),
    (ValueError, "num_kv_heads: expected K' >= 1, got 0", "expand_kv_heads", GROUPED, (0,)),
    (ValueError, "ranks: expected ranks to divide N = 12, got 8", "replicate_kv_heads", GROUPED, (8,)),
    (ValueError, "ranks: expected ranks to divide N = 12, got 24", "slice_heads", GROUPED, (0, 24)),
    (ValueError, "ranks: expected ranks >= 1, got 0", "slice_heads", GROUPED, (0, 0)),
    (ValueError, "rank: expected rank < ranks = 4, got 4", "slice_heads", GROUPED, (4, 4)),
    (ValueError, "rank: expected rank >= 0, got -1", "slice_heads", GROUPED, (-1, 4)),
    (
        ValueError,
        "qk_norm: expected a norm of each head, got 'rms_full', which is over all heads: "
        "a rank that holds some of them cannot compute it",
        "slice_heads",
        FULL_WIDTH,
        (0, 2),
    ),
    (
        ValueError,
        "pairing: expected a config with rope, got rope=None, which pairs nothing",
        "convert_rope_pairing",
        FULL_WIDTH,
        ("half",),
    ),
    (ValueError, "pairing: expected half, interleaved, got 'neox'", "convert_rope_pairing", GROUPED, ("neox",)),
]


@pytest.mark.parametrize(("error", "sentence", "name", "config", "arguments"), REFUSED)
def test_what_cannot_be_done_is_refused_in_one_sentence(error, sentence, name, config, arguments):
    with pytest.raises(error) as caught:
        getattr(heads, name)(random_weights(weight_shapes(config)), config, *arguments)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pool_kv_heads", (2,)),
        ("expand_kv_heads", ()),
        ("replicate_kv_heads", (2,)),
        ("slice_heads", (0, 2)),
        ("convert_rope_pairing", ("half",)),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(name, arguments):
    weights = random_weights(weight_shapes(GROUPED)) | {"k_proj.weight": np.ones((2, E)), "sinks": np.ones(12)}
    sentence = r"^weights: unexpected sinks; k_proj.weight expected \(K\*H, E\) = \(60, 13\), got \(2, 13\)$"
    with pytest.raises(ValueError, match=sentence):
        getattr(heads, name)(weights, GROUPED, *arguments)


def test_the_example_in_the_guide_runs():
    guide = Path(__file__).parents[2] / "docs" / "conversion.md"
    found = doctest.testfile(str(guide), module_relative=False)
    assert found.attempted > 0
    assert found.failed == 0

"""Bad input raises the same exception with the same sentence in all three backends, before any arithmetic (SPEC 14)."""

import ml_dtypes
import numpy as np
import pytest

from conformance.targets import BACKENDS, Backend
from gqa_spec import (
    AttentionConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)
from tests.helpers import new_layer

pytestmark = pytest.mark.no_shape_checks

Q, KEY, VALUE = (2, 8, 7, 64), (2, 2, 5, 64), (2, 2, 5, 11)


def kernel(backend, query=Q, key=KEY, value=VALUE, mask=None, dtypes=("float64",) * 3, **keywords):
    """grouped_query_attention of a backend on zeros of these shapes."""
    to = backend.framework.to
    arrays = [to(np.zeros(shape, dtype)) for shape, dtype in zip((query, key, value), dtypes, strict=True)]
    keywords = {name: to(x) for name, x in keywords.items()}
    backend.module.grouped_query_attention(*arrays, None if mask is None else to(mask), **keywords)


def layer(backend, query=(2, 7, 24), key=None, value=None, mask=None, dtype="float64", settings=None, **keywords):
    """A layer of width 24 with 6 over 2 heads, called on zeros of these shapes."""
    to = backend.framework.to
    options = backend.framework.options("float64")
    module = backend.module.GroupedQueryAttention(24, 6, 2, **(settings or {}), **options)
    arrays = [None if shape is None else to(np.zeros(shape, dtype)) for shape in (query, key, value)]
    module(*arrays, None if mask is None else to(mask), **{name: to(x) for name, x in keywords.items()})


def weights(backend, changes):
    module = backend.module.GroupedQueryAttention(24, 6, 2, **backend.framework.options("float32"))
    given = {name: x for name, x in (module.export_weights() | changes).items() if x is not None}
    module.load_weights(given)


def sentence(call, backend):
    """What a call raises, as (type, text)."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(backend)
    return caught.type, str(caught.value)


KERNEL = {
    "K does not divide N": (
        lambda w: kernel(w, key=(2, 5, 7, 64)),
        ValueError,
        "key: expected K to divide N = 8, got (2, 5, 7, 64): axis K is 5",
    ),
    "K is 0": (
        lambda w: kernel(w, key=(2, 0, 5, 64), value=(2, 0, 5, 11)),
        ValueError,
        "key: expected K to divide N = 8, got (2, 0, 5, 64): axis K is 0",
    ),
    "query has 3 axes": (
        lambda w: kernel(w, query=(8, 7, 64)),
        ValueError,
        "query: expected 4 axes (B, N, T, H), got (8, 7, 64)",
    ),
    "key of another batch": (
        lambda w: kernel(w, key=(3, 2, 5, 64)),
        ValueError,
        "key: expected (B, K, S, H) with B = 2, H = 64, got (3, 2, 5, 64): axis B is 3",
    ),
    "key of another head size": (
        lambda w: kernel(w, key=(2, 2, 5, 32)),
        ValueError,
        "key: expected (B, K, S, H) with B = 2, H = 64, got (2, 2, 5, 32): axis H is 32",
    ),
    "value of another length": (
        lambda w: kernel(w, value=(2, 2, 6, 11)),
        ValueError,
        "value: expected (B, K, S, Hv) with B = 2, K = 2, S = 5, got (2, 2, 6, 11): axis S is 6",
    ),
    "value of other heads": (
        lambda w: kernel(w, value=(2, 4, 5, 11)),
        ValueError,
        "value: expected (B, K, S, Hv) with B = 2, K = 2, S = 5, got (2, 4, 5, 11): axis K is 4",
    ),
    "integers": (
        lambda w: kernel(w, dtypes=("int32",) * 3),
        TypeError,
        "query: expected a dtype of float16, bfloat16, float32, float64, got int32",
    ),
    "mixed dtypes": (
        lambda w: kernel(w, dtypes=("float64", "float32", "float64")),
        TypeError,
        "key: expected the query's dtype float64, got float32",
    ),
    "mixed 16-bit dtypes": (
        lambda w: kernel(w, dtypes=("float16", "float16", ml_dtypes.bfloat16)),
        TypeError,
        "value: expected the query's dtype float16, got bfloat16",
    ),
    "mask with 3 axes": (
        lambda w: kernel(w, mask=np.ones((2, 7, 5), bool)),
        ValueError,
        "mask: expected (T, S) = (7, 5) or 4 axes that broadcast to (B, N, T, S) = (2, 8, 7, 5), "
        "got (2, 7, 5): write mask[:, None]",
    ),
    "mask transposed": (
        lambda w: kernel(w, mask=np.ones((5, 7), bool)),
        ValueError,
        "mask: expected (T, S) = (7, 5) or 4 axes that broadcast to (B, N, T, S) = (2, 8, 7, 5), got (5, 7)",
    ),
    "mask per KV head": (
        lambda w: kernel(w, mask=np.ones((2, 2, 7, 5), bool)),
        ValueError,
        "mask: expected (T, S) = (7, 5) or 4 axes that broadcast to (B, N, T, S) = (2, 8, 7, 5), got (2, 2, 7, 5)",
    ),
    "integer mask": (
        lambda w: kernel(w, mask=np.ones((7, 5), np.int32)),
        TypeError,
        "mask: expected bool (True = may attend) or a floating dtype (added to the scores), got int32",
    ),
    "negative window": (lambda w: kernel(w, window=-1), ValueError, "window: expected window >= 1, got -1"),
    "window of 0": (lambda w: kernel(w, window=0), ValueError, "window: expected window >= 1, got 0"),
    "window of 2.5": (lambda w: kernel(w, window=2.5), TypeError, "window: expected an integer, got 2.5"),
    "chunk of 0": (lambda w: kernel(w, chunk=0), ValueError, "chunk: expected chunk >= 1, got 0"),
    "causal of 1": (lambda w: kernel(w, causal=1), TypeError, "causal: expected True or False, got 1"),
    "scale of 0": (lambda w: kernel(w, scale=0.0), ValueError, "scale: expected a finite number > 0, got 0.0"),
    "scale of inf": (
        lambda w: kernel(w, scale=float("inf")),
        ValueError,
        "scale: expected a finite number > 0, got inf",
    ),
    "negative softcap": (
        lambda w: kernel(w, softcap=-5.0),
        ValueError,
        "softcap: expected a finite number > 0, got -5.0",
    ),
    "softcap of a word": (
        lambda w: kernel(w, softcap="50"),
        TypeError,
        "softcap: expected a number or None, got '50'",
    ),
    "sinks per KV head": (
        lambda w: kernel(w, sinks=np.zeros(2)),
        ValueError,
        "sinks: expected (N,) with N = 8, got (2,): axis N is 2",
    ),
    "offset of 0.5": (
        lambda w: kernel(w, offset=0.5),
        TypeError,
        "offset: expected an integer or an integer array, got 0.5",
    ),
    "offsets of another batch": (
        lambda w: kernel(w, offset=np.zeros(3, np.int32)),
        ValueError,
        "offset: expected one integer or (B,) = (2,), got (3,)",
    ),
    "floating offsets": (
        lambda w: kernel(w, offset=np.zeros(2)),
        TypeError,
        "offset: expected an integer or an integer array, got float64",
    ),
    "dropout multiplier of another shape": (
        lambda w: kernel(w, dropout_multiplier=np.ones((7, 5))),
        ValueError,
        "dropout_multiplier: expected a shape that broadcasts to (B, N, T, S) = (2, 8, 7, 5), got (7, 5)",
    ),
    "a list": (
        lambda w: w.module.grouped_query_attention([[1.0]], [[1.0]], [[1.0]]),
        TypeError,
        "query: expected an array of this backend, got list",
    ),
}

LAYER = {
    "another width": (
        lambda w: layer(w, query=(2, 7, 23)),
        ValueError,
        "query: expected (B, T, D) with D = 24, got (2, 7, 23): axis D is 23",
    ),
    "no batch axis": (lambda w: layer(w, query=(7, 24)), ValueError, "query: expected 3 axes (B, T, D), got (7, 24)"),
    "another dtype": (
        lambda w: layer(w, dtype="float32"),
        TypeError,
        "query: expected the layer's dtype float64, got float32: "
        "cast the input to float64, or make the layer with dtype float32",
    ),
    "value of another length": (
        lambda w: layer(w, key=(2, 5, 24), value=(2, 4, 24)),
        ValueError,
        "value: expected (B, S, E) with B = 2, S = 5, E = 24, got (2, 4, 24): axis S is 4",
    ),
    "mask with 3 axes": (
        lambda w: layer(w, mask=np.ones((2, 7, 7), bool)),
        ValueError,
        "mask: expected (T, S) = (7, 7) or 4 axes that broadcast to (B, N, T, S) = (2, 6, 7, 7), "
        "got (2, 7, 7): write mask[:, None]",
    ),
    "positions without rope": (
        lambda w: layer(w, positions=np.arange(7)),
        ValueError,
        "positions: expected None for a layer without rope, whose positions rotate nothing",
    ),
    "positions of another length": (
        lambda w: layer(w, positions=np.arange(6), settings={"rope": RopeConfig()}),
        ValueError,
        "positions: expected (T,) = (7,) or (B, T) = (2, 7), got (6,)",
    ),
    "floating positions": (
        lambda w: layer(w, key_positions=np.arange(7.0), settings={"rope": RopeConfig()}),
        TypeError,
        "key_positions: expected an integer dtype, got float64",
    ),
    "rope_length of 0": (
        lambda w: layer(w, rope_length=0, settings={"rope": RopeConfig()}),
        ValueError,
        "rope_length: expected rope_length >= 1, got 0",
    ),
    "missing, extra and misshapen weights": (
        lambda w: weights(w, {"q_proj.weight": None, "z": np.zeros(3), "o_proj.weight": np.zeros((24, 8), "f4")}),
        ValueError,
        "weights: missing q_proj.weight; unexpected z; o_proj.weight expected (D, N*Hv) = (24, 24), got (24, 8)",
    ),
    "wider weights": (
        lambda w: weights(w, {"q_proj.weight": np.zeros((24, 24))}),
        TypeError,
        "weights: expected dtypes that float32 holds exactly: q_proj.weight is float64",
    ),
    "K does not divide N": (
        lambda w: new_layer(w, 24, 6, 4),
        ValueError,
        "num_kv_heads: expected K to divide N = 6, got 4",
    ),
    "more KV heads than heads": (
        lambda w: new_layer(w, 24, 6, 12),
        ValueError,
        "num_kv_heads: expected K to divide N = 6, got 12",
    ),
    "no heads": (lambda w: new_layer(w, 24, 0), ValueError, "num_heads: expected N >= 1, got 0"),
    "width that heads do not split": (
        lambda w: new_layer(w, 25, 6),
        ValueError,
        "embed_dim: expected N = 6 to divide D = 25 when head_dim is not given, got 25",
    ),
    "heads of 1.5": (lambda w: new_layer(w, 24, 1.5), TypeError, "num_heads: expected an integer, got 1.5"),
    "dropout of 1": (
        lambda w: new_layer(w, 24, 6, 2, 1.0),
        ValueError,
        "dropout: expected a finite number >= 0 and < 1, got 1.0",
    ),
    "unknown norm": (
        lambda w: new_layer(w, 24, 6, qk_norm="layer"),
        ValueError,
        "qk_norm: expected rms, rms_plus_one, rms_full or None, got 'layer'",
    ),
    "a dictionary for rope": (
        lambda w: new_layer(w, 24, 6, rope={"theta": 1e4}),
        TypeError,
        r"rope: expected a RopeConfig (from gqa_spec import RopeConfig), True or None, got dict",
    ),
    "rotary_dim past the head": (
        lambda w: new_layer(w, 24, 6, rope=RopeConfig(rotary_dim=6)),
        ValueError,
        "rotary_dim: expected at most H = 4, got 6",
    ),
    "odd head with rope": (
        lambda w: new_layer(w, 24, 6, head_dim=5, rope=RopeConfig()),
        ValueError,
        "rotary_dim: expected an even number of dimensions to pair, got 5",
    ),
}


@pytest.mark.parametrize("case", [*KERNEL.values(), *LAYER.values()], ids=[*KERNEL, *LAYER])
def test_the_same_sentence_in_every_backend(case):
    call, kind, text = case
    assert {name: sentence(call, Backend(name)) for name in BACKENDS} == dict.fromkeys(BACKENDS, (kind, text))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: RopeConfig(pairing="neox"), ValueError, "pairing: expected half, interleaved, got 'neox'"),
        (lambda: RopeConfig(theta=0), ValueError, "theta: expected a finite number > 1, got 0"),
        (
            lambda: RopeConfig(rotary_dim=7),
            ValueError,
            "rotary_dim: expected an even number of dimensions to pair, got 7",
        ),
        (
            lambda: RopeConfig(scaling="yarn"),
            TypeError,
            "scaling: expected LinearScaling or DynamicScaling or YarnScaling or Llama3Scaling or LongropeScaling "
            "or None, got str",
        ),
        (lambda: LinearScaling(factor=0.5), ValueError, "factor: expected a finite number >= 1, got 0.5"),
        (
            lambda: DynamicScaling(factor=2.0, original_max_position_embeddings=0),
            ValueError,
            "original_max_position_embeddings: expected original_max_position_embeddings >= 1, got 0",
        ),
        (
            lambda: YarnScaling(factor=2.0, original_max_position_embeddings=64, beta_fast=0.5),
            ValueError,
            "beta_fast: expected a finite number > 1.0, got 0.5",
        ),
        (
            lambda: Llama3Scaling(
                factor=2.0, original_max_position_embeddings=64, low_freq_factor=4.0, high_freq_factor=1.0
            ),
            ValueError,
            "high_freq_factor: expected a finite number > 4.0, got 1.0",
        ),
        (
            lambda: AttentionConfig(
                embed_dim=32,
                num_heads=4,
                rope=RopeConfig(
                    scaling=LongropeScaling(
                        short_factor=(1.0,), long_factor=(2.0,), original_max_position_embeddings=64, factor=4.0
                    )
                ),
            ),
            ValueError,
            "short_factor: expected rotary_dim / 2 = 4 factors, got 1",
        ),
    ],
)
def test_a_config_refuses_what_makes_no_sense(make, kind, text):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == text


def test_a_config_is_frozen_and_hashable():
    config = AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2)
    assert hash(config) == hash(AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, head_dim=4))
    with pytest.raises(AttributeError):
        config.causal = True
    with pytest.raises(TypeError):
        AttentionConfig(24, 6)

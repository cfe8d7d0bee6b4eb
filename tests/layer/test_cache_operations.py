"""What can be done with a cache besides extending it: every sequence of operations gives what whole passes give."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.cases.compare import error_of
from conformance.targets import BACKENDS, Backend
from gqa_spec import AttentionConfig, DynamicScaling, RopeConfig
from gqa_weights import weight_shapes
from tests.helpers import random_weights

SIZES = {"embed_dim": 13, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "v_head_dim": 5, "causal": True}
DYNAMIC = RopeConfig(scaling=DynamicScaling(factor=2.0, original_max_position_embeddings=8))
CONFIGS = {"dynamic NTK": {"rope": DYNAMIC}, "window and chunk": {"window": 4, "chunk": 5, "rope": RopeConfig()}}
MAX_LENGTH = 12


@pytest.fixture(params=BACKENDS)
def backend(request):
    return Backend(request.param)


def layer_of(backend, name):
    config = AttentionConfig(**SIZES, **CONFIGS[name])
    layer = backend.layer(config, "float64")
    layer.load(random_weights(weight_shapes(config)))
    return layer


def tokens(rows, length, seed=0):
    return np.random.default_rng([seed, rows, length]).normal(size=(rows, length, SIZES["embed_dim"]))


@dataclass
class Session:
    """A cache, and for each of its rows the tokens that it holds."""

    layer: object
    cache: object
    rows: list
    rope_length: int

    def extend(self, x, counts):
        to, back = self.layer.framework.to, self.layer.framework.back
        output, self.cache = self.layer.module.extend(to(x), self.cache, lengths=to(np.array(counts)))
        output = back(output)
        for b, count in enumerate(counts):
            self.rows[b] = np.concatenate([self.rows[b], x[b, :count]])
            if count:
                alone, _ = self.layer.module(to(self.rows[b][None]), rope_length=self.rope_length)
                assert error_of(output[b, :count], back(alone)[0, -count:]) <= 1e-11
        assert back(self.cache.length).tolist() == [len(row) for row in self.rows]

    def check_empty_slots(self):
        if self.cache.rolling:
            return
        keys = self.layer.framework.back(self.cache.keys)
        for b, row in enumerate(self.rows):
            assert not keys[b, :, len(row) :].any()


def start(layer, rows=2, **kind):
    cache = layer.module.init_cache(rows, MAX_LENGTH, **kind)
    return Session(layer, cache, [np.zeros((0, SIZES["embed_dim"]))] * rows, MAX_LENGTH)


OPERATIONS = st.lists(
    st.sampled_from(["extend", "extend", "truncate", "select", "repeat", "reset", "grow", "clone"]),
    min_size=3,
    max_size=9,
)


def run(session, operations, draw):
    for step, operation in enumerate(operations):
        B, to = len(session.rows), session.layer.framework.to
        held = [len(row) for row in session.rows]
        match operation:
            case "extend":
                free = 3 if session.cache.rolling else session.cache.capacity - max(held)
                T = draw(st.sampled_from([1, 3]))
                counts = [draw(st.integers(0, min(T, free))) for _ in range(B)]
                session.extend(tokens(B, T, step), counts)
            case "truncate" if not session.cache.rolling:
                keep = [draw(st.integers(0, n)) for n in held]
                session.cache = session.cache.truncate(to(np.array(keep)))
                session.rows = [row[:n] for row, n in zip(session.rows, keep, strict=True)]
            case "select":
                chosen = draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=3))
                session.cache = session.cache.select(to(np.array(chosen)))
                session.rows = [session.rows[b] for b in chosen]
            case "repeat" if B <= 2:
                session.cache = session.cache.repeat(2)
                session.rows = [row for row in session.rows for _ in range(2)]
            case "reset":
                row = draw(st.integers(0, B - 1))
                session.cache = session.cache.reset(to(np.array([row])))
                session.rows[row] = session.rows[row][:0]
            case "grow":
                session.cache = session.cache.grow(session.cache.capacity + 2)
            case "clone":
                twin = replace(session, cache=session.cache.clone(), rows=list(session.rows))
                if session.cache.rolling or session.cache.capacity > max(held):
                    twin.extend(tokens(B, 1, 99), [1] * B)
        session.check_empty_slots()


@pytest.mark.parametrize("backend_name", [name for name in BACKENDS if name != "jax"])
@pytest.mark.parametrize(("name", "kind"), [("dynamic NTK", {}), ("window and chunk", {"rolling": True})])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, data=st.data())
def test_any_operations_give_what_whole_passes_give(backend_name, name, kind, operations, data):
    run(start(layer_of(Backend(backend_name), name), **kind), operations, data.draw)


@pytest.mark.parametrize(("name", "kind"), [("dynamic NTK", {}), ("window and chunk", {"rolling": True})])
@settings(max_examples=8, deadline=None)
@given(operations=OPERATIONS, data=st.data())
def test_any_operations_give_what_whole_passes_give_in_jax(name, kind, operations, data):
    """Fewer, because each new shape is compiled."""
    run(start(layer_of(Backend("jax"), name), **kind), operations, data.draw)


# --- what is refused -------------------------------------------------------------------------------------------------


def filled(backend, name="dynamic NTK", **kind):
    session = start(layer_of(backend, name), **kind)
    session.extend(tokens(2, 5), [5, 3])
    return session


def test_one_length_truncates_every_row(backend):
    cache = filled(backend).cache.truncate(2)
    assert backend.framework.back(cache.length).tolist() == [2, 2]


@pytest.mark.no_shape_checks
def test_what_a_cache_cannot_do_raises(backend):
    to = backend.framework.to
    cache = filled(backend).cache
    for lengths, got in (([6, 1], "got 6 in row 0"), ([2, -1], "got -1 in row 1")):
        with pytest.raises(ValueError, match=rf"lengths: expected 0 <= length <= [53], the cache's length, {got}"):
            cache.truncate(to(np.array(lengths)))
    for operation in (cache.select, cache.reset):
        with pytest.raises(ValueError, match="rows: expected 0 <= row < B = 2, got 2"):
            operation(to(np.array([0, 2])))
    with pytest.raises(ValueError, match="n: expected n >= 1, got 0"):
        cache.repeat(0)
    with pytest.raises(ValueError, match="max_length: expected at least capacity = 12, got 11"):
        cache.grow(11)
    rolling = filled(backend, "window and chunk", rolling=True).cache
    with pytest.raises(ValueError, match="truncate: expected a cache with rolling=False"):
        rolling.truncate(1)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "jax"])
@pytest.mark.parametrize(
    "operation", [lambda c: c.truncate(1), lambda c: c.reset(np.array([0]))], ids=["truncate", "reset"]
)
def test_what_writes_in_place_consumes(name, operation):
    cache = filled(Backend(name)).cache
    operation(cache)
    for use in (lambda: cache.truncate(1), lambda: cache.grow(20), cache.clone, lambda: cache.repeat(2)):
        with pytest.raises(ValueError, match="cache: expected one that was not extended yet"):
            use()


def test_the_length_of_a_rolling_cache_cannot_be_set_by_hand(backend):
    """Its slots are counted back from the length: earlier tokens would be taken for later ones."""
    session = filled(backend, "window and chunk", rolling=True)
    edited = replace(session.cache, length=session.cache.length - 1)
    with pytest.raises(ValueError, match=r"cache.length: expected 5, as extend returned it, got 4 in row 0"):
        session.layer.module.extend(backend.framework.to(tokens(2, 1)), edited)


# --- jit ---------------------------------------------------------------------------------------------------------


def test_operations_under_jit_give_the_same():
    import jax

    cache, to = filled(Backend("jax")).cache, Backend("jax").framework.to
    for operation, argument in (
        (lambda c, a: c.truncate(a), to(np.array([2, 3]))),
        (lambda c, a: c.select(a), to(np.array([1, 0, 1]))),
        (lambda c, a: c.reset(a), to(np.array([1]))),
        (lambda c, a: c.repeat(3).grow(20), 0),
    ):
        got, expected = jax.jit(operation)(cache, argument), operation(cache, argument)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_overflowed_row_stays_so_until_it_is_reset():
    import jax

    session = filled(Backend("jax"))
    to, extend = session.layer.framework.to, jax.jit(session.layer.module.extend)
    _, cache = extend(to(tokens(2, 8)), session.cache)  # 5 + 8 > 12, 3 + 8 <= 12
    assert np.asarray(cache.length).tolist() == [13, 11]
    for changed in (cache.grow(20), cache.grow(20).truncate(np.array([2, 3])), cache.select(np.array([0, 1]))):
        output, _ = extend(to(tokens(2, 1)), changed)
        assert np.isnan(np.asarray(output)[0]).all()
        assert np.isfinite(np.asarray(output)[1]).all()
    output, _ = extend(to(tokens(2, 1)), cache.reset(np.array([0])))
    assert np.isfinite(np.asarray(output)).all()


def test_an_edited_length_of_a_rolling_cache_gives_nan_under_jit():
    import jax

    session = filled(Backend("jax"), "window and chunk", rolling=True)
    edited = replace(session.cache, length=session.cache.length - np.array([1, 0]))
    output, _ = jax.jit(session.layer.module.extend)(session.layer.framework.to(tokens(2, 1)), edited)
    assert np.isnan(np.asarray(output)[0]).all()
    assert np.isfinite(np.asarray(output)[1]).all()

"""Planted cache bugs (traps 23 and 24): each makes some split of a sequence differ from the whole pass."""

from dataclasses import replace

import numpy as np
import pytest

import gqa_numpy
from conformance.compare import error_of
from gqa_numpy import cache
from gqa_spec import AttentionConfig, RopeConfig
from gqa_spec.weights import weight_shapes

WINDOW, CHUNK, LENGTH = 4, 5, 17
right_visibility, right_appended = cache.visibility, cache.appended


def positions_restart(held, T, config):
    """Each chunk stands at position 0."""
    return right_visibility(held, T, config) | ({} if held.rolling else {"offset": 0})


def first_row_for_all(held, T, config):
    """One length for the whole batch."""
    return right_visibility(replace(held, length=np.full_like(held.length, held.length[0])), T, config)


def empty_slots_are_seen(held, T, config):
    """A rolling cache that is not yet full shows its zeros."""
    found = right_visibility(held, T, config)
    return found if found["mask"] is None else found | {"mask": np.ones_like(found["mask"])}


def chunks_count_slots(held, T, config):
    """Llama 4's chunks counted from the first slot held, not from position 0."""
    if not held.rolling:
        return right_visibility(held, T, config)
    return right_visibility(held, T, replace(config, chunk=None)) | {"chunk": config.chunk}


def written_before_read(held, key, value, count):
    """The new tokens push out old ones that their own first queries still see."""
    longer, keys, values = right_appended(held, key, value, count)
    if held.rolling:
        for x in (keys, values):
            x[:, :, : key.shape[2]] = 0
    return longer, keys, values


def padding_is_stored(held, key, value, count):
    """What stands behind a row's real tokens is kept too."""
    longer, keys, values = right_appended(held, key, value, np.full_like(count, key.shape[2]))
    return replace(longer, length=held.length + count), keys, values


def one_slot_late(held, key, value, count):
    """Written behind a gap of one slot."""
    if held.rolling:
        return right_appended(held, key, value, count)
    longer, keys, values = right_appended(replace(held, length=held.length + 1), key, value, count)
    return replace(longer, length=held.length + count), keys, values


BUGS = {
    positions_restart: "visibility",
    first_row_for_all: "visibility",
    empty_slots_are_seen: "visibility",
    chunks_count_slots: "visibility",
    written_before_read: "appended",
    padding_is_stored: "appended",
    one_slot_late: "appended",
}


def worst_error(rolling):
    """The largest difference between chunks of unequal rows and the whole pass."""
    config = AttentionConfig(
        embed_dim=13,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        causal=True,
        window=WINDOW,
        chunk=CHUNK,
        rope=RopeConfig(),
    )
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in weight_shapes(config).items()}
    layer = gqa_numpy.GroupedQueryAttention.from_config(config).eval().load_weights(weights)
    x = rng.normal(size=(2, LENGTH, 13))
    held, seen, errors = layer.init_cache(2, 40, rolling=rolling), np.zeros(2, int), []
    whole, _ = layer(x)
    for counts in ([3, 5], [4, 2], [1, 1], [5, 6]):
        padded = np.ones((2, 6, 13))
        for row, count in enumerate(counts):
            padded[row, :count] = x[row, seen[row] : seen[row] + count]
        output, held = layer.extend(padded, held, lengths=np.array(counts))
        for row, count in enumerate(counts):
            errors.append(error_of(output[row, :count], whole[row, seen[row] : seen[row] + count]))
        seen += counts
    return max(errors)


@pytest.mark.parametrize("rolling", [False, True])
def test_correct_caches_are_not_accused(rolling):
    assert worst_error(rolling) <= 1e-12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_every_planted_cache_bug_is_caught(monkeypatch, bug):
    monkeypatch.setattr(cache, BUGS[bug], bug)
    assert max(worst_error(False), worst_error(True)) > 1e-6

"""What a model takes besides tokens (masks, positions, documents), and generate besides lists (arrays, caches)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conformance.cases.compare import error_of
from tests.helpers import new_model, to_backend, to_numpy
from tests.model.models import BACKENDS, attention, decoder, model, weights

pytestmark = pytest.mark.no_shape_checks
V, NEW, SLOTS = 37, 3, 23
ROWS = [np.array([3, 1, 4, 1, 5, 9, 2]), np.array([6, 5, 3])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def result(backend: str, name: str, tokens: np.ndarray, **keywords: np.ndarray) -> np.ndarray:
    given = {key: to_backend(backend, x) for key, x in keywords.items()}
    return to_numpy(model(backend, name)(to_backend(backend, tokens), rope_length=7, **given))


@pytest.mark.parametrize("name", ["gemma", "cohere"])
def test_left_padding_gives_what_each_row_gives_alone(backend: str, name: str) -> None:
    """The mask hides the padding, positions count from the first real token."""
    width = 7
    tokens, real = np.zeros((2, width), np.int64), np.zeros((2, width), bool)
    for row, prompt in enumerate(ROWS):
        tokens[row, width - len(prompt) :], real[row, width - len(prompt) :] = prompt, True
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    got = result(backend, name, tokens, mask=real[:, None, None, :], positions=positions)
    for row, prompt in enumerate(ROWS):
        assert error_of(got[row, width - len(prompt) :], result(backend, name, prompt[None])[0]) <= 1e-12


def test_layers_without_rope_whose_queries_are_scaled_by_position_get_positions_too(backend: str) -> None:
    """Llama 4: far positions scale the queries of its layers without RoPE."""
    scaled = attention(rope=None, query_scale_beta=0.5, query_scale_length=4)
    transformer = new_model(backend, decoder(scaled)).load_weights(weights(decoder(scaled)))
    tokens, far = to_backend(backend, ROWS[0][None]), to_backend(backend, np.arange(7) + 100)
    near, scaled_far = (to_numpy(transformer(tokens, **given)) for given in ({}, {"positions": far}))
    assert error_of(near, scaled_far) > 1e-3


@pytest.mark.parametrize("name", ["gemma", "olmo"])
def test_packed_documents_give_what_each_gives_alone(backend: str, name: str) -> None:
    """Two documents in one row, padded on the right: segments and lengths together."""
    packed = np.concatenate([*ROWS, [0, 0]])[None]
    segments = np.repeat([4, 2, 2], [7, 3, 2])[None]
    got = result(backend, name, packed, segments=segments, lengths=np.array([10]))
    for start, document in zip((0, 7), ROWS, strict=True):
        alone = result(backend, name, document[None])[0]
        assert error_of(got[0, start : start + len(document)], alone) <= 1e-11


def test_a_floating_mask_is_added_and_combines_with_the_others(backend: str) -> None:
    tokens, bias = ROWS[0][None], np.random.default_rng(0).normal(size=(7, 7))
    hidden = np.where(np.arange(7) < 5, 0.0, -np.inf)[None, None, None]
    got = result(backend, "olmo", tokens, mask=bias[None, None] + hidden)
    both = result(backend, "olmo", tokens, mask=bias, lengths=np.array([5]))
    np.testing.assert_array_equal(got[:, :5], both[:, :5])
    assert error_of(got, result(backend, "olmo", tokens)) > 1e-3


@pytest.mark.parametrize("name", ["gemma", "olmo"])
def test_embeddings_give_what_their_tokens_give(backend: str, name: str) -> None:
    """In a call and in `extend`; gemma multiplies what it embeds, and its multiplier is in the vectors already."""
    transformer, tokens = model(backend, name), ROWS[0][None]
    scale = transformer.config.embedding_scale
    embedded = to_backend(backend, weights(transformer.config)["embed.weight"][tokens] * scale)
    expected = result(backend, name, tokens)
    assert error_of(to_numpy(transformer(embedded, rope_length=7)), expected) <= 1e-14
    logits, cache = transformer.extend(embedded[:, :4], transformer.init_cache(1, 7))
    rest, _ = transformer.extend(to_backend(backend, tokens[:, 4:]), cache)
    assert error_of(np.concatenate([to_numpy(logits), to_numpy(rest)], axis=1), expected) <= 1e-12


def test_a_cache_that_keeps_every_token_can_go_back(backend: str) -> None:
    """A draft beyond the window of 3 is taken back; a rolling cache could not."""
    transformer, tokens = model(backend, "gemma"), to_backend(backend, ROWS[0][None])
    cache = transformer.init_cache(1, 7, rolling=False)
    assert not any(held.rolling for held in cache)
    _, cache = transformer.extend(tokens[:, :5], cache)
    _, cache = transformer.extend(to_backend(backend, np.array([[30, 31]])), cache)
    rest, _ = transformer.extend(tokens[:, 5:], cache.truncate(5))
    assert error_of(to_numpy(rest), result(backend, "gemma", ROWS[0][None])[:, 5:]) <= 1e-12


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((1, 7, 12)), r"embeddings: expected \(B, T, D\) with D = 13, got \(1, 7, 12\)"),
        (np.zeros((1, 7, 13), np.float32), "embeddings: expected the model's dtype float64, got float32"),
        (np.zeros((1, 7)), "tokens: expected an integer dtype, got float64"),
    ],
    ids=["width", "dtype", "floating tokens"],
)
def test_wrong_embeddings_raise(backend: str, given: np.ndarray, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        result(backend, "gemma", given)


@pytest.mark.parametrize(
    ("name", "keywords", "sentence"),
    [
        ("gemma", {"mask": np.ones((7, 6), bool)}, r"mask: expected \(T, S\) = \(7, 7\) or 4 axes"),
        ("gemma", {"positions": np.zeros((3, 7), int)}, r"positions: expected \(T,\) = \(7,\) or \(B, T\)"),
        ("gemma", {"segments": np.zeros((1, 6), int)}, r"segments: expected \(B, T\) with B = 1, T = 7"),
        ("encoder", {"segments": np.zeros((1, 7))}, "segments: expected an integer dtype, got float64"),
    ],
    ids=["mask", "positions", "segments", "floating segments"],
)
def test_wrong_inputs_raise(backend: str, name: str, keywords: Any, sentence: str) -> None:
    tokens = ROWS[0][None] if name == "gemma" else np.zeros((1, 7, 11))
    with pytest.raises((ValueError, TypeError), match=sentence):
        result(backend, name, tokens, **keywords)


# --- generate --------------------------------------------------------------------------------------------------------


def test_arrays_are_prompts_and_a_seed_draws_the_same_text(backend: str) -> None:
    transformer, prompts = model(backend, "gemma"), np.array([[3, 1, 4], [1, 5, 9]])
    expected = transformer.generate(prompts.tolist(), NEW, temperature=1.0, seed=5)
    for given in (prompts, to_backend(backend, prompts), [to_backend(backend, row) for row in prompts]):
        assert transformer.generate(given, NEW, temperature=1.0, seed=5) == expected
    assert transformer.generate(prompts, 9, temperature=1.0, seed=5) != transformer.generate(
        prompts, 9, temperature=1.0, seed=6
    )
    with pytest.raises(ValueError, match="seed: expected None where uniforms are given"):
        transformer.generate(prompts, NEW, seed=5, uniforms=np.zeros((2, NEW)))


@pytest.mark.parametrize("name", ["gemma", "cohere"])
def test_turns_on_one_cache_give_what_one_whole_prompt_gives(backend: str, name: str) -> None:
    """Rows of different lengths; the cache holds every token that was returned."""
    transformer, turns = model(backend, name), [[[3, 1, 4], [1, 5]], [[9], [2, 6, 5]]]
    cache, history = transformer.init_cache(2, SLOTS), [[], []]
    for turn in turns:
        new, cache = transformer.generate(turn, NEW, cache=cache)
        history = [old + prompt + tokens for old, prompt, tokens in zip(history, turn, new, strict=True)]
    assert to_numpy(cache[0].length).tolist() == [len(row) for row in history]
    fresh = transformer.init_cache(2, SLOTS)
    again, _ = transformer.generate([row[:-NEW] for row in history], NEW, cache=fresh)
    assert again == [row[-NEW:] for row in history]


def test_a_row_that_has_ended_adds_nothing_to_the_cache(backend: str) -> None:
    transformer = model(backend, "gemma")
    prompts, cache = [[3, 1, 4], [1, 5]], transformer.init_cache(2, SLOTS)
    first, _ = transformer.generate(prompts, 6, cache=transformer.init_cache(2, SLOTS))
    stop = first[0][1]
    new, cache = transformer.generate(prompts, 6, stop_tokens=[stop], cache=cache)
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in first]
    assert new == expected
    lengths = [len(prompt) + len(tokens) for prompt, tokens in zip(prompts, new, strict=True)]
    assert to_numpy(cache[0].length).tolist() == lengths


def test_a_prefix_is_shared_by_many_continuations(backend: str) -> None:
    transformer = model(backend, "gemma")
    prefix, endings = [7, 3, 1, 4], [[1, 5], [9], [2]]
    _, cache = transformer.extend(to_backend(backend, np.array([prefix])), transformer.init_cache(1, SLOTS))
    new, _ = transformer.generate(endings, NEW, cache=cache.repeat(3))
    whole, _ = transformer.generate([prefix + end for end in endings], NEW, cache=transformer.init_cache(3, SLOTS))
    assert new == whole


def test_a_cache_that_is_too_small_raises_before_anything_is_written(backend: str) -> None:
    transformer = model(backend, "cohere")
    cache = transformer.init_cache(2, 5)
    with pytest.raises(ValueError, match=r"cache: expected length \+ chunk <= capacity = 5, got length 0 \+ chunk 6"):
        transformer.generate([[3, 1, 4], [1, 5]], NEW, cache=cache)
    with pytest.raises(ValueError, match="prompts: expected one for each of the cache's B = 2 rows, got 1"):
        transformer.generate([[3]], 1, cache=cache)
    new, _ = transformer.generate([[3], [1]], NEW, cache=cache)
    assert [len(row) for row in new] == [NEW, NEW]

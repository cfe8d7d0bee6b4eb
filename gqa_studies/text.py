"""Real prose to train on: the King James text, byte by byte, with one book held out for the test."""

from __future__ import annotations

from functools import cache

import numpy as np

from conformance.cases.real_data import king_james

Array = np.ndarray
VOCABULARY = 256
HELD_OUT = 44  # Acts: 130 kB that repeat no other book, as the gospels and the chronicles repeat each other
BOOKS = 66


@cache
def split() -> tuple[Array, Array]:
    """The bytes of 65 books, one after the other, and those of the book held out: uint8."""
    bible = king_james()
    train = "".join(bible.book(number) for number in range(1, BOOKS + 1) if number != HELD_OUT)
    return _bytes(train), _bytes(bible.book(HELD_OUT))


def batches(tokens: Array, count: int, batch: int, context: int, seed: int) -> np.ndarray:
    """(count, batch, context + 1): passages from random places, the same for the same seed. Each holds its targets."""
    starts = np.random.default_rng(seed).integers(0, len(tokens) - context, size=(count, batch))
    return tokens[starts[..., None] + np.arange(context + 1)]


def passages(tokens: Array, context: int) -> Array:
    """(passages, context + 1): the whole text in order. Neighbours share one token, which is the last target of the
    first and the first input of the second, so that each token but the first of all is predicted once."""
    count = (len(tokens) - 1) // context
    return tokens[np.arange(count)[:, None] * context + np.arange(context + 1)]


def _bytes(text: str) -> Array:
    return np.frombuffer(text.encode("utf-8"), np.uint8)

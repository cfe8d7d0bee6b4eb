"""What a target is, and how it declares what it does not support.

A kernel is any function `attention(query, key, value, mask, causal=..., window=..., ...)`, a layer any class that is
built with fields of `AttentionConfig` and takes canonical weights. The names of their parameters state what they
support; `Limits` states the rest. What a target cannot do is unsupported, and never counted as passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Unsupported(Exception):
    """A target does not support a case; the message is the reason."""


class NotATarget(Exception):
    """A target cannot be found, imported or used."""


@contextmanager
def refusing(*sentences: str) -> Iterator[None]:
    """Errors whose text holds one of these sentences are a library's way to say that it does not support a case."""
    try:
        yield
    except Exception as error:
        if any(sentence in str(error) for sentence in sentences):
            raise Unsupported(str(error).strip().split("\n")[0]) from error
        raise


class ChangedInputs(Exception):
    """A target wrote into what it was given."""


class WrongType(Exception):
    """A target returned something that is no array of its framework."""

"""What a file is that has the name of weights and no weights in it."""

from __future__ import annotations

BEGINNING = 64  # bytes of a file that tell
FIRST = 8  # in which every format has a byte that no text has
# How such a file begins -> what it is, and the remedy.
BEGINNINGS = {
    b"version https://git-lfs": "only git-lfs's pointer to the file: run `git lfs pull`",
    b"/annex/objects/": "only git-annex's pointer to the file: run `git annex get`",
    b"<!doctype": "a web page, no weights: download the file again",
    b"<html": "a web page, no weights: download the file again",
    b"<?xml": "an XML text, no weights: download the file again",
    b"{": "a JSON text, no weights",
}
TEXT = {*range(32, 127), *b"\t\n\r"}


def said(beginning: bytes) -> str | None:
    """A sentence about an empty file or a text, None for all others. Of safetensors the first bytes are a length, which
    in letters would be one of over 10**17.
    """
    if not beginning:
        return "the file is empty"
    if len(beginning) < FIRST or not TEXT.issuperset(beginning[:FIRST]):
        return None
    start = beginning.lstrip().lower()
    found = (sentence for sign, sentence in BEGINNINGS.items() if start.startswith(sign))
    return next(found, f"a text that begins {beginning[:16].decode()!r}, no weights")

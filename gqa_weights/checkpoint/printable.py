"""Text from files, made fit for a terminal, a log and a sentence: the one place that all of it passes."""

from __future__ import annotations

import unicodedata

MOST = 1500  # characters of a message
# Categories of characters that change how text is shown or ordered: control, format (the bidirectional ones are such),
# surrogates, unassigned, private use, and separators of lines.
HIDDEN = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def printable(text: str, keep: str = "") -> str:
    r"""Text with its control, format and bidirectional characters as escapes, such as \x1b; those of `keep` stay."""
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else _escaped(c) for c in text)


def sentence(text: str) -> str:
    """Text as one printable line of bounded length."""
    words = printable(" ".join(text.split()))
    if len(words) <= MOST:
        return words
    half = MOST // 2
    return f"{words[:half]} … {words[-half:]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

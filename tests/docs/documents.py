"""README.md, SPEC.md and docs/: their text, their code blocks, their commands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, SPEC = ROOT / "README.md", ROOT / "SPEC.md"
PAGES = [README, SPEC, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str | None = None) -> list[str]:
    """The fenced blocks of a page: those of a language, or all."""
    found = re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if language in (None, name)]


def block_starting(page: Path, start: str) -> str:
    return next(block for block in blocks(page) if block.startswith(start))


def commands(page: Path) -> list[str]:
    """Every `gqa ...` with arguments that the page shows, in a block or in its text, without the comment behind it."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    shown = [line.removeprefix("$ ") for line in lines] + re.findall(r"`(gqa [\w-]+ [^`\n]*)`", prose)
    return [re.split(r"\s{2,}#|\s{4,}| \|\| ", line)[0].strip() for line in shown if line.startswith("gqa ")]

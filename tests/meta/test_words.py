"""Code, documents, messages and names of tests are in plain words: none of the metaphors that the project once had."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = re.compile(
    r"\b(wings?|rooms?|floors?|houses?|front doors?|textbooks?|innocents?|homeless|misfits?|hears?|heard"
    r"|listens?|listened|kills?|killed|no matter|repair rope|unhooked)\b",
    re.IGNORECASE,
)
# Terms of mathematics and of the operating system.
TERMS = re.compile(
    r'(math|np|jnp)\.floor\b|"floor"|floor division|floor and ceil|\.kill\(|killed process|pthread kill\b'
)
READ = {".py", ".md", ".toml", ".html", ".css", ".js", ".cff", ".yaml"}


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    skipped = {"CHANGELOG.md", "tests/meta/test_words.py"}
    return [ROOT / name for name in listed if Path(name).suffix in READ and name not in skipped]


def banned_words(line: str) -> list[str]:
    """A name such as `killed_process` is read as its words."""
    return BANNED.findall(TERMS.sub("", line.replace("_", " ")))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("the wings of the house", ["wings", "house"]),
        ("def heard_by(self):", ["heard"]),
        ("process.kill()  # math.floor(x), a floor division", []),
        ("a headroom of 3", []),
    ],
)
def test_words_are_found(line: str, words: list[str]) -> None:
    assert banned_words(line) == words


def test_no_metaphor_is_left() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}: {line.strip()[:100]}"
        for path in text_files()
        if path.exists()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word in banned_words(line)
    ]
    assert found == []

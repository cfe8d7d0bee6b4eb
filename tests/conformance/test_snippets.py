"""The code of docs/dialects.md prints what the page says, without gqa: two independent ways to the same rows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.dialects.detect import Finding
from conformance.dialects.snippet_calls import CALLS
from conformance.dialects.snippets import SHOWN, snippet
from conformance.targets.table import PUBLIC

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
# Runs each code of a mapping from standard input, and prints what it printed or raised, as JSON.
DRIVER = """
import contextlib, io, json, sys
printed = {}
for name, code in json.load(sys.stdin).items():
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {})
        printed[name] = out.getvalue().strip()
    except Exception as error:
        printed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(printed))
"""


def _on_page() -> dict[str, tuple[str, str]]:
    """By name of section: the code, and what it is to print."""
    pattern = r"^### (\S+) \((?:(?!^### ).)*?```python\n((?:(?!^### ).)*?)\n```\n\n```text\n(.*?)\n```"
    return {name: (code, text) for name, code, text in re.findall(pattern, PAGE.read_text(), re.M | re.S)}


SNIPPETS = _on_page()
GROUPS = ("torch", "transformers", "x_transformers", "litgpt", "jax", "flax", "onnx", "keras.torch", "keras.jax")


def _group(name: str) -> str:
    """Those of one process: a package, and for Keras its backend."""
    return next(group for group in reversed(GROUPS) if name.startswith(group))


@pytest.mark.parametrize("group", GROUPS)
def test_the_code_of_the_page_prints_what_it_says(group):
    shown = {name: pair for name, pair in SNIPPETS.items() if _group(name) == group}
    assert shown
    if missing := {PUBLIC[name].missing for name in shown} - {""}:
        pytest.skip(f"{', '.join(sorted(missing))} is not installed")
    codes = json.dumps({name: code for name, (code, _) in shown.items()})
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", DRIVER], input=codes, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {name: text for name, (_, text) in shown.items()}


def test_the_code_of_the_page_needs_no_gqa():
    for name, (code, _) in SNIPPETS.items():
        assert not re.search(r"^(import|from) (gqa|conformance)", code, re.M), name


def test_each_target_of_the_page_has_code():
    sections = set(re.findall(r"^### (\S+) \(", PAGE.read_text(), re.M))
    assert sections == set(SNIPPETS) == set(CALLS)


def test_what_is_printed_follows_the_answer():
    """Another answer is another line; an answer that code cannot show has none."""
    for convention, shown in SHOWN.items():
        for answer, text in shown.printed.items():
            code, printed = snippet("torch.sdpa", [Finding(convention, answer)])
            assert printed == f"{convention}: {text}"
            assert f'print("{convention}:' in code
    assert snippet("torch.sdpa", [Finding("head order", "something else")])[1] == ""

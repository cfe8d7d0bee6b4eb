"""Every example of README.md, SPEC.md and docs/ prints what it says; a page is one session, from top to bottom."""

from __future__ import annotations

import doctest
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.cases.table import layer_cases
from conformance.checks.targets import target_checks
from conformance.targets import find_target
from tests.docs.documents import PAGES, README, ROOT, block_starting, blocks

pytestmark = [pytest.mark.no_shape_checks, pytest.mark.x64_off]
NEEDS = {"gqa_torch": ("torch",), "gqa_jax": ("jax", "flax"), "my_layer": ("torch",)}
EXAMPLES = {page: [block for block in blocks(page, "python") if ">>>" in block] for page in PAGES}


def skip_without(text: str) -> None:
    needed = {package for module, packages in NEEDS.items() if module in text for package in packages}
    for package in sorted(needed):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("page", [page for page, found in EXAMPLES.items() if found], ids=lambda page: page.name)
def test_examples_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("".join(EXAMPLES[page]))
    monkeypatch.chdir(tmp_path)  # what an example writes
    session: dict[str, object] = {}
    for example in EXAMPLES[page]:
        parsed = doctest.DocTestParser().get_doctest(example, {}, page.name, None, 0)
        parsed.globs = session
        printed: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(parsed, out=printed.append, clear_globs=False)
        assert runner.failures == 0, "".join(printed)


def test_the_readme_fits_150_lines_and_shows_a_layer_on_its_first_screen() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert "from gqa_torch import GroupedQueryAttention" in "\n".join(lines[:40])


def test_each_backend_has_a_quickstart() -> None:
    examples = "".join(EXAMPLES[ROOT / "docs" / "use.md"])
    for backend in ("gqa_numpy", "gqa_torch", "gqa_jax"):
        assert f"from {backend} import GroupQueryAttention" in examples
    assert "load_weights" in examples
    assert "export_weights" in examples


def test_the_class_of_the_guide_passes_what_it_supports(sample_targets: Path) -> None:
    """As `gqa conform --target my_layer:MyAttention` runs it, on fewer cases."""
    skip_without("my_layer")
    source = block_starting(ROOT / "docs" / "conformance.md", "# my_layer.py")
    (sample_targets / "my_layer.py").write_text(source)
    target = find_target("my_layer:MyAttention", None)
    cases = [case for case in layer_cases() if case.grouping in ("MHA 3", "GQA 6 over 2", "GQA 12 over 3", "MQA 2")]
    checks = [check for case in cases for check in target_checks(case, "float64", target) if check is not None]
    assert {check.verdict for check in checks} == {"pass", "unsupported"}
    passed = {check.case.partition(" / ")[2] for check in checks if check.verdict == "pass"}
    assert passed == {"square", "square causal", "square mask"}

"""What an import loads at run time: lint-imports checks direct imports, this checks what they lead to."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGES = (
    "torch",
    "jax",
    "flax",
    "transformers",
    "gguf",
    "orbax",
    "matplotlib",
    "tokenizers",
    "onnx",
    "rich",
    "typer",
)


def loaded(module: str, among: tuple[str, ...]) -> set[str]:
    """The top-level names among `among` that a fresh interpreter has loaded after `import module`."""
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & set(among)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("gqa_spec", set()),
        ("gqa_weights", set()),
        ("gqa_numpy", set()),
        ("gqa_torch", {"torch"}),
        ("gqa_jax", {"jax", "flax", "orbax", "rich"}),  # flax imports orbax and rich where they are installed
        ("conformance.checks.run", set()),
        ("conformance.targets", set()),
        ("conformance.dialects", set()),
        ("conformance.trace", set()),
        ("gqa_studies", set()),
        ("gqa", set()),
    ],
)
def test_a_package_loads_its_own_framework_alone(module: str, allowed: set[str]) -> None:
    assert loaded(module, PACKAGES) <= allowed


@pytest.mark.parametrize("module", ["gqa_numpy", "gqa_torch", "gqa_jax"])
def test_a_backend_loads_nothing_above_it_and_no_other_backend(module: str) -> None:
    ours = ("gqa_spec", "gqa_weights", "gqa_numpy", "gqa_torch", "gqa_jax", "conformance", "gqa_studies", "gqa")
    assert loaded(module, ours) <= {"gqa_spec", "gqa_weights", module}


def test_the_specification_loads_nothing_of_ours() -> None:
    assert loaded("gqa_spec", ("gqa_weights", "conformance", "gqa_numpy", "gqa")) == set()


def test_gqa_torch_loads_no_more_of_torch_than_torch_does() -> None:
    """torch._dynamo alone, which a decorator of torch.compiler loads, takes 0.9 s."""
    code = (
        "import sys, torch; before = set(sys.modules); import gqa_torch; "
        "print(*(name for name in set(sys.modules) - before if name.startswith('torch.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

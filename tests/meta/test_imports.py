"""What an import loads."""

import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "jax", "flax", "transformers", "gguf", "orbax", "matplotlib")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("gqa_spec", ()),
        ("gqa_weights", ()),
        ("gqa_numpy", ()),
        ("gqa_torch", ("torch",)),
        ("gqa_jax", ("jax", "flax", "orbax")),
        ("conformance.checks.run", ()),
    ],
)
def test_only_its_own_framework_is_loaded(module, allowed):
    code = f"import {module}, sys; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {set(FRAMEWORKS)}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(allowed)

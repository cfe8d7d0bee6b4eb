"""The shape-checking hook is alive: under it a wrong axis in a pure function is caught, in each backend."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from importlib import import_module
import numpy as np
sys.path.insert(0, "tests")
import conftest
from conformance.targets import Backend
backend = Backend("{backend}")
x = backend.framework.to(np.ones((2, 3, 5, 4), "float32"))
weight = backend.framework.to(np.ones({size}, "float32"))
import_module("gqa_{backend}.norm").qk_norm(x, weight, "rms", 1e-6)
"""


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_a_wrong_axis_is_caught(backend):
    def run(size):
        code = CODE.format(backend=backend, size=size)
        hooked = os.environ | {"GQA_SHAPES": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=hooked)

    assert run(size=4).returncode == 0
    wrong = run(size=1)  # broadcasts, so only the annotation can object
    assert wrong.returncode != 0
    assert "TypeCheckError" in wrong.stderr

"""What all tests share: the backends as a fixture, and the shape-checking hook.

`GQA_SHAPES=1 pytest` checks every jaxtyping annotation of the pure functions at run time. Tests of our own messages and
of a framework's tracing are marked `no_shape_checks`: the hook would answer first, or be traced.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import jaxtyping

# Small programs run no faster for LLVM's optimizer, which is a third of the time that they take to compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

PURE_MODULES = (
    "masks",
    "rope",
    "norm",
    "plain",
    "fast",
    "attention",
)  # not cache: JAX makes pytrees of placeholders
if os.environ.get("GQA_SHAPES"):
    hooked = [f"gqa_{backend}.{module}" for backend in ("numpy", "torch", "jax") for module in PURE_MODULES]
    jaxtyping.install_import_hook(hooked, "beartype.beartype")

import pytest  # noqa: E402  (the hook comes before every import of a backend)

from conformance.targets import BACKENDS, Backend  # noqa: E402

SAMPLE_TARGETS = Path(__file__).parent / "sample_targets"


@pytest.fixture
def sample_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the modules of tests/sample_targets in it, as a user has modules of their own."""
    for path in SAMPLE_TARGETS.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


@pytest.fixture(autouse=True)
def _x64(request: pytest.FixtureRequest) -> None:
    """float64 in JAX as in the others, except in tests marked `x64_off`, which run JAX as users have it."""
    if find_spec("jax") is not None:
        import jax

        jax.config.update("jax_enable_x64", request.node.get_closest_marker("x64_off") is None)

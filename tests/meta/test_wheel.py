"""The wheel, installed where the source tree is not: the command, the suite and the pytest plugin work."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_shape_checks

ROOT = Path(__file__).parents[2]
BUILT = ("pyproject.toml", "README.md", "LICENSE", "gqa", "gqa_*", "conformance")


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """In a folder that is not the source tree, without any path into it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    environment |= {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with a virtual environment that has the wheel, and every other package from this one's."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 is needed to build the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for pattern in BUILT:
        for path in ROOT.glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, source / path.name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(folder, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(source)
    assert run(folder, sys.executable, "-m", "venv", "--without-pip", folder / "env").returncode == 0
    python = folder / "env" / "bin" / "python"
    [wheel] = folder.glob("gqa-*.whl")
    done = run(folder, *pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    [packages] = (folder / "env").glob("lib/python*/site-packages")
    # One path in a .pth file: packages are found there, other .pth files there (an editable install) are not read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    shutil.copy(ROOT / "tests" / "sample_targets" / "numpy_kernels.py", folder)
    return folder


def test_the_code_is_the_wheels(installed):
    found = run(
        installed,
        installed / "env/bin/python",
        "-c",
        "import conformance, gqa; print(conformance.__file__, gqa.__file__)",
    )
    assert found.returncode == 0, found.stderr
    assert [Path(path).is_relative_to(installed / "env") for path in found.stdout.split()] == [True, True]


def test_the_packages_of_the_wheel_are_typed(installed):
    [packages] = (installed / "env").glob("lib/python*/site-packages")
    assert {path.parent.name for path in packages.glob("*/py.typed")} >= {
        "gqa",
        "gqa_spec",
        "gqa_weights",
        "gqa_numpy",
        "gqa_torch",
        "gqa_jax",
        "gqa_studies",
        "conformance",
    }


def test_the_command_has_its_subcommands(installed):
    found = run(installed, installed / "env/bin/gqa", "--help")
    assert found.returncode == 0, found.stderr
    assert all(name in found.stdout for name in ("conform", "dialect", "trace", "port", "verify", "study"))


def test_a_target_is_judged_and_reported(installed):
    asked = (
        "conform",
        "--target",
        "numpy_kernels:tiled",
        "--arrays",
        "numpy",
        "--html",
        "page.html",
        "--junit",
        "junit.xml",
    )
    found = run(installed, installed / "env/bin/gqa", *asked)
    assert found.returncode == 1, found.stderr
    assert "head order: tiled" in found.stdout
    assert "<table" in (installed / "page.html").read_text()  # the template is in the wheel
    assert (installed / "junit.xml").read_text().count("<failure") > 20


def test_pytest_finds_the_plugin_and_the_tests(installed):
    python = installed / "env/bin/python"
    asked = ("-m", "pytest", "-q", "-rs", "--pyargs", "conformance", "-k", "plain or window", "-p", "no:cacheprovider")
    right = run(installed, python, *asked, "--gqa-target", "numpy_kernels:kernel", "--gqa-arrays", "numpy")
    assert right.returncode == 0, right.stdout
    assert "16 passed" in right.stdout
    assert "unsupported: takes no window" in right.stdout
    wrong = run(installed, python, *asked, "--gqa-target", "numpy_kernels:tiled", "--gqa-arrays", "numpy")
    assert wrong.returncode == 1, wrong.stdout
    assert "reproduced by: head order: tiled" in wrong.stdout

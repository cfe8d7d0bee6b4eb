"""The plugin, as another project's CI runs it: outcomes, exit codes, files of skips and expected failures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_shape_checks

WITHOUT = {"PYTEST_ADDOPTS", "PYTHONPATH"}


@pytest.fixture
def run(sample_targets):
    """pytest on one target, as (exit code, counts by outcome, output)."""

    def pytest_run(*arguments: str, target: str | None = "numpy_kernels:kernel") -> tuple[int, dict[str, int], str]:
        asked = ["--gqa-target", target, "--gqa-arrays", "numpy"] if target else []
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "conformance.pytest_plugin",
                "-p",
                "no:cacheprovider",
                "-rsxX",
                "--tb=short",
                "--pyargs",
                "conformance",
                *asked,
                *arguments,
            ],
            cwd=sample_targets,
            env={name: x for name, x in os.environ.items() if name not in WITHOUT},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        lines = done.stdout.strip().splitlines() or [""]  # stderr: usage errors, and what the target warns of
        counted = re.findall(r"(\d+) (passed|failed|skipped|xfailed|xpassed|warning|deselected)", lines[-1])
        return done.returncode, {outcome: int(number) for number, outcome in counted}, done.stdout + done.stderr

    pytest_run.folder = sample_targets
    return pytest_run


def test_what_is_right_passes_and_what_is_unsupported_is_skipped_with_the_reason(run):
    code, counted, output = run("-k", "plain or window")
    assert code == 0, output
    assert counted["passed"] == 4 * 2 * 2  # one case on three groupings and with one query, two dtypes, two quantities
    assert counted["skipped"] > 0
    assert "unsupported: takes no causal, window" in output
    assert "failed" not in counted


def test_a_failure_names_the_reason_and_the_command(run):
    code, counted, output = run("-k", "empty and rows and not sinks")
    assert code == 1
    assert counted["failed"] == 4 * 2 * 2
    assert "NaN where a number is expected" in output
    assert "reproduced by: empty row, boolean: NaN" in output
    assert "gqa trace numpy numpy_kernels:kernel --case 'MHA 3 / empty rows' --dtype float64 --arrays numpy" in output


def test_a_quantity_that_is_not_returned_is_skipped(run):
    code, counted, output = run("-k", "MHA and plain", target="numpy_kernels:kernel_without_weights")
    assert (code, counted["passed"], counted["skipped"]) == (0, 2, 2)
    assert "unsupported: returns none" in output


def test_a_case_without_an_answer_fails_in_every_quantity(run):
    code, counted, output = run(
        "-k", "MHA and causal and float64 and not offset and not mask", target="faulty_kernels:dies"
    )
    assert (code, counted["failed"]) == (1, 2 * 2)  # two cases, two quantities
    assert "ended its process with exit code 7" in output


def test_nothing_judged_has_not_passed(run):
    code, counted, output = run("-k", "chunk")
    assert code == 1
    assert "passed" not in counted
    assert "gqa: nothing was judged" in output


def test_files_of_skips_and_expected_failures(run):
    (run.folder / "skips.txt").write_text("# slow\n\nMHA 3 / plain  # a whole case\nMQA 5 / plain, float32, weights\n")
    (run.folder / "xfails.txt").write_text("* / empty rows\n* / plain, float64, output\n* / no such case\n")
    code, counted, output = run(
        "-k", "plain or (empty and rows and not sinks)", "--gqa-skips", "skips.txt", "--gqa-xfails", "xfails.txt"
    )
    assert code == 0, output
    assert counted["skipped"] == 4 + 1
    assert counted["xfailed"] == 4 * 2 * 2
    assert counted["xpassed"] == 3  # of four groupings, one is skipped
    assert counted["passed"] == 16 - 5 - 3
    assert counted["warning"] == 1
    assert "--gqa-xfails xfails.txt: '* / no such case' matches no case" in output
    assert "skips.txt: MHA 3 / plain" in output


@pytest.mark.parametrize(
    ("arguments", "target", "code", "sentence"),
    [
        ([], "numpy_kernels:nothing", 4, "target numpy_kernels:nothing: AttributeError"),
        ([], "numpy_kernels", 4, "target: expected MODULE:NAME"),
        ([], None, 2, "conformance: expected --gqa-target MODULE:NAME"),
        (["--gqa-skips", "none.txt"], "numpy_kernels:kernel", 4, "none.txt: [Errno 2] No such file"),
    ],
)
def test_a_run_that_cannot_start_says_why_in_one_line(run, arguments, target, code, sentence):
    got, counted, output = run(*arguments, target=target)
    assert got == code
    assert sentence in output
    assert "passed" not in counted
    assert "Traceback" not in output


def test_the_plugin_costs_other_projects_nothing(tmp_path):
    """It is loaded by every pytest run of an environment that has gqa."""
    program = "import sys, conformance.pytest_plugin; print([m for m in sys.modules if m.split('.')[0] in NAMES])"
    names = repr(("numpy", "torch", "jax", "gqa_spec", "gqa_numpy", "einops", "rich"))
    done = subprocess.run(
        [sys.executable, "-c", program.replace("NAMES", names)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_there_is_an_entry_point_for_it():
    import tomllib

    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert settings["project"]["entry-points"]["pytest11"] == {"conformance.pytest_plugin": "conformance.pytest_plugin"}

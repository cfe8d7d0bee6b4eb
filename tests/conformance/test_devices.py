"""`--device`: arrays are made there; a device that there is none of, or that holds no numbers, is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.cases import inputs
from conformance.cases.compare import bound, error_of
from conformance.cases.table import kernel_cases
from conformance.checks.expected import in_dtype
from gqa import app

SCRIPT = Path(__file__).with_name("on_two_devices.py")


def test_jax_is_judged_on_a_second_device():
    pytest.importorskip("jax")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    found = subprocess.run([sys.executable, SCRIPT], env=environment, cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("passed on cpu:1") == 2
    assert "--device cpu:2: jax has none: there are 2 of cpu, counted from 0" in found.stdout


@pytest.mark.no_shape_checks
def test_torch_is_judged_on_a_named_device_and_another_is_refused():
    pytest.importorskip("torch")
    command = ["conform", "--target", "gqa_torch:grouped_query_attention", "--arrays", "torch", "--case", "*2 / plain"]
    assert CliRunner().invoke(app, [*command, "--device", "cpu"]).exit_code == 0
    refused = CliRunner().invoke(app, [*command, "--device", "meta"])
    assert refused.exit_code == 2
    assert refused.stderr.count("--device meta: torch has none") == 1
    assert "Traceback" not in refused.stderr


def test_no_gradient_may_be_far_off_in_float32():
    """A bound that an argument at its rounding's edge widens would let a wrong gradient pass."""
    import gqa_numpy

    checked = 0
    for case in kernel_cases():
        if not case.differentiated or case.pairs > 20_000 or case.feature.past_float16:
            continue
        call, kinds = inputs.kernel_call(case, "float32"), {}
        for kind in ("float64", "float32"):
            ours = in_dtype(call, kind)
            context, vjp = gqa_numpy.grouped_query_attention_vjp(*ours.arguments, **ours.keywords)
            d_output = inputs.output_gradient(case, context.shape).astype(np.float32)
            if case.feature.mask == "finfo.min":
                d_output[..., 0, :] = 0
            kinds[kind] = vjp(d_output.astype(kind))
        for name, x in kinds["float32"].items():
            allowed = 2 * bound("float32", error_of(x, kinds["float64"][name]))
            assert allowed < 1e-4, (case.name, name)
            checked += 1
    assert checked > 150

"""The suite itself: three backends agree in all six directions, and its power to catch bugs is what it says it is."""

import json

import pytest
from typer.testing import CliRunner

from conformance.cases.table import FEATURE, GROUPINGS, KERNEL_ROWS, SIZED, cases, kernel_cases, layer_cases
from conformance.checks import run
from conformance.report.tables import counts, pair
from gqa import app


@pytest.fixture(scope="module")
def checks():
    return run.run(run.backend_tasks(), lambda size: None)[0]


def test_every_pair_of_backends_agrees(checks):
    assert [check for check in checks if check.verdict != "pass"] == []


def test_there_are_enough_checks_in_every_direction(checks):
    assert counts(checks)["pass"] >= 1500
    directions = {check.column for check in checks if " to " in check.column}
    backends = ("numpy", "torch", "jax")
    assert directions >= {
        f"{a} to {b}, {dtype}" for a in backends for b in backends if a != b for dtype in ("float64", "float32")
    }
    assert {check.quantity for check in checks} == {"port", "output", "weights"}


def test_the_table_has_the_groupings_that_it_promises():
    pairs = {(g.num_heads, g.num_kv_heads) for g in GROUPINGS}
    assert len(pairs) == len(GROUPINGS) >= 40
    assert all(K != N // K for N, K in pairs)
    for every in (list(cases()), kernel_cases(), layer_cases()):
        names = [case.name for case in every]
        assert len(set(names)) == len(names)
    assert len({feature.name for feature in SIZED}) == len(SIZED)
    assert {case.feature.name for case in (*kernel_cases(), *layer_cases())} == FEATURE.keys()


def test_the_sizes_are_those_of_real_models_and_around_the_blocks_of_real_kernels():
    every = [*kernel_cases(), *layer_cases()]
    assert {case.config.head_dim for case in every} >= {8, 64, 72, 80, 96, 128, 256, 33}
    assert {case.config.group_size for case in every} >= {1, 3, 4, 5, 7, 8, 16}
    assert any(case.config.v_head_dim > case.config.head_dim for case in every)
    assert any(case.B == case.config.num_kv_heads > 1 for case in every)
    assert {case.T for case in every} >= {1, 2, 3, 63, 64, 65, 128, 260, 1024, 1027, 2051}
    assert {case.S for case in every} >= {1, 64, 192, 260, 515, 600, 1024, 2051, 32771}
    one_query = {case.feature.name for case in kernel_cases() if case.T == 1}
    assert one_query >= {case.feature.name for case in kernel_cases() if case.grouping == "MQA 5"} - {
        "causal, more queries than keys"
    }


def test_every_axis_has_its_own_size():
    for case in [*cases(), *(case for case in kernel_cases() if case.grouping in KERNEL_ROWS)]:
        if case.feature.given == "query, value":  # its key is the query
            continue
        c = case.config
        heads = {c.num_heads, c.num_kv_heads, c.group_size}  # of which MHA and MQA have two, by their nature
        sizes = [case.B, case.T, c.head_dim]
        if not case.feature.square:
            sizes += [case.S, c.v_head_dim, c.embed_dim, c.kv_dim]
        assert len({*sizes, *heads}) == len(sizes) + len(heads), case.name


def test_both_directions_share_a_column():
    assert pair("torch to jax, float32") == pair("jax to torch, float32") == "jax ~ torch\nfloat32"


@pytest.fixture
def conform(sample_targets):
    """`gqa conform ...` as (exit code, JSON, output)."""

    def command(*arguments):
        result = CliRunner().invoke(app, ["conform", *arguments, "--json", "found.json"])
        written = sample_targets / "found.json"
        return result.exit_code, json.loads(written.read_text()) if written.exists() else None, result.output

    return command


@pytest.mark.no_shape_checks
def test_a_correct_class_passes_what_it_can_do(conform):
    code, found, output = conform("--target", "torch_layers:Right")
    assert found["counts"]["fail"] == 0, output
    assert found["counts"]["pass"] > 100
    assert found["counts"]["unsupported"] > 100  # no window, no softcap, no RoPE: said, and not counted as passed
    assert code == 0
    assert "not supported" in output


@pytest.mark.no_shape_checks
def test_a_wrong_class_fails_by_name(conform):
    code, found, _ = conform("--target", "torch_layers:Tiled")
    assert code == 1
    failed = {check["row"] for check in found["checks"] if check["verdict"] == "fail"}
    passed = {check["row"] for check in found["checks"] if check["verdict"] == "pass"} - failed
    assert "GQA 6 over 2" in failed
    assert all(row.startswith("MQA") or row.startswith("MHA") for row in passed)


@pytest.mark.no_shape_checks
def test_a_function_is_judged_too(conform):
    code, found, _ = conform("--target", "numpy_kernels:kernel", "--arrays", "numpy")
    failed = {check["case"] for check in found["checks"] if check["verdict"] == "fail"}
    assert code == 1
    assert "GQA 6 over 2 / empty rows" in failed  # it divides 0 by 0
    assert not any("plain" in name or "bool mask" in name for name in failed)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere:Thing", "target nowhere:Thing: ModuleNotFoundError"),
        ("torch_layers:Missing", "AttributeError"),
        ("torch_layers", "expected MODULE:NAME or the name of a public implementation: torch.sdpa, "),
        ("numpy_kernels:np", "expected a class or a function, got module"),
    ],
)
@pytest.mark.no_shape_checks
def test_a_target_that_is_none(conform, target, sentence):
    code, found, output = conform("--target", target)
    assert code == 2
    assert found is None
    assert sentence in output

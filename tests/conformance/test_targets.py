"""Targets: public implementations by name, and what becomes of one that raises, hangs, dies or spoils its inputs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance.cases.table import kernel_cases
from conformance.checks import caches as cache_checks
from conformance.checks import judge
from conformance.report.tables import counts
from conformance.targets import PUBLIC, Limits, NotATarget, Unsupported, find_target, fit
from conformance.targets.worker import Stopped, Worker
from gqa import app

FAULTS = {
    "raises": "raised ZeroDivisionError: no reason",
    "returns_a_list": "returned list, expected an array of numpy",
    "returns_another_shape": "shape (",
    "returns_another_dtype": "dtype float16, expected",
    "returns_integers": "dtype int64, expected",
    "returns_nan": "NaN where a number is expected",
    "changes_its_inputs": "changes its input key",
    "is_random": "not deterministic",
}


@pytest.fixture
def few_cases(sample_targets, monkeypatch):
    """Three cases of one grouping."""
    names = ("plain", "causal", "bool mask")
    few = [c for c in kernel_cases() if c.grouping == "GQA 6 over 2" and c.feature.name in names]
    monkeypatch.setattr(judge, "kernel_cases", lambda: few)
    monkeypatch.setattr(judge, "STATES", ())


def judged(name, limit=20.0):
    return judge.judge(f"faulty_kernels:{name}", judge.Options(limit=limit)).checks


@pytest.mark.no_shape_checks
def test_what_is_right_passes(few_cases):
    assert counts(judged("correct")) == {"pass": 12, "fail": 0, "unsupported": 0}


@pytest.mark.no_shape_checks
def test_every_fault_is_reported_as_what_it_is(few_cases):
    for name, sentence in FAULTS.items():
        checks = judged(name)
        plain = [check for check in checks if check.case.endswith("/ plain") and check.quantity == "output"]
        assert [check.verdict for check in plain] == ["fail", "fail"], name
        assert all(sentence in check.reason for check in plain), (name, plain)


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(("name", "sentence"), [("hangs", "did not answer within 3 s"), ("dies", "exit code 7")])
def test_the_run_goes_on_after_one_that_does_not_answer(few_cases, name, sentence):
    checks = judged(name, limit=3.0)
    assert {c.case for c in checks if c.verdict == "fail"} == {"GQA 6 over 2 / causal"}
    assert all(sentence in c.reason for c in checks if c.verdict == "fail")
    assert counts(checks)["pass"] == 8  # the cases after it too


@pytest.mark.no_shape_checks
def test_a_failing_case_names_what_reproduces_it(few_cases):
    for name, names in {
        "tiled": "head order: tiled: n % K",
        "tiled_and_unscaled": "head order: tiled: n % K + scale: 1",
    }.items():
        failed = [check for check in judged(name) if check.verdict == "fail"]
        assert failed
        assert {check.explanation for check in failed} == {names}


@pytest.mark.no_shape_checks
def test_the_command_goes_on_and_exits_1(few_cases):
    result = CliRunner().invoke(app, ["conform", "--target", "faulty_kernels:raises", "--json", "found.json"])
    found = json.loads(Path("found.json").read_text())
    assert result.exit_code == 1
    assert found["counts"] == {"pass": 0, "fail": 4, "unsupported": 4}  # it takes no causal


RECOGNISED = {
    ("GPT", ()): ["always has qkv_bias = True", "always has out_bias = True", "always causal"],
    ("GPTWithRope", ()): [
        "always has qkv_bias = True",
        "always has out_bias = True",
        "applies RoPE itself: interleaved, theta 500000",
        "always causal",
    ],
    ("Fused", ()): ["its weights are stored as torch.nn.MultiheadAttention"],
    ("FlaxLayer", (("weights", "flax.nnx.MultiHeadAttention"),)): [],
    ("rows_of_tokens", (("layout", "BTNH"),)): [],
    ("half_only", ()): [],
    ("not_written", ()): [],
}
# What a correct one of its kind fails: jax.nn computes in float32.
KNOWN_FAULTS = {"FlaxLayer": ("float64",)}


@pytest.fixture
def few(monkeypatch):
    """Few cases, of functions and of classes."""
    names = ("square", "plain", "causal", "square causal", "finfo.min bias", "square mask")
    for kind in ("kernel_cases", "layer_cases"):
        cases = getattr(judge, kind)()
        kept = [c for c in cases if c.grouping == "GQA 6 over 2" and c.feature.name in names]
        monkeypatch.setattr(judge, kind, lambda kept=kept: kept)
    monkeypatch.setattr(judge.cache_checks, "CASES", ())
    monkeypatch.setattr(judge, "STATES", ())


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("key", RECOGNISED, ids=lambda key: key[0])
def test_any_signature_is_judged_as_what_it_is(sample_targets, few, key):
    name, changes = key
    with Worker(f"any_signature:{name}", None, 30.0, dict(changes)) as worker:
        assert list(worker.notes) == RECOGNISED[key]
    checks = judge.judge(f"any_signature:{name}", judge.Options(changes=dict(changes))).checks
    failed = [
        c for c in checks if c.verdict == "fail" and c.column.rpartition(", ")[2] not in KNOWN_FAULTS.get(name, ())
    ]
    assert not failed, failed[0]
    assert counts(checks)["pass"] >= 2


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("name", "changes"),
    [("FusedSplitWrongly", {}), ("rows_of_tokens_tiled", {"layout": "BTNH"}), ("half_only_tiled", {})],
)
def test_a_fault_in_any_signature_is_found(sample_targets, few, name, changes):
    checks = judge.judge(f"any_signature:{name}", judge.Options(changes=changes)).checks
    assert counts(checks)["fail"] >= 1
    if name.endswith("tiled"):
        assert {c.explanation for c in checks if c.verdict == "fail"} == {"head order: tiled: n % K"}


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("any_signature:asks_for_tables", "cannot be called: requires cos, sin, for which the suite has no value"),
        ("any_signature:NeedsMore", "cannot be built or called: requires layer_norm_factory, for which the suite has"),
        ("faulty_kernels:always_raises", "cannot be called: ZeroDivisionError: no reason"),
    ],
)
def test_what_can_never_be_called_is_one_sentence_and_exit_code_2(sample_targets, name, sentence):
    result = CliRunner().invoke(app, ["conform", "--target", name])
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.output.strip().split("\n")) == 1


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere:thing", "target nowhere:thing: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:thing", "target broken:thing: SyntaxError"),
        ("quits:thing", "target quits:thing: SystemExit: 3"),
        ("crashes:thing", "target crashes:thing: its import ended its process with exit code 9"),
        ("torch.nothing", "expected MODULE:NAME or the name of a public implementation"),
    ],
)
def test_a_target_that_cannot_be_imported_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, target, sentence):
    (tmp_path / "broken.py").write_text("def thing(:\n")
    (tmp_path / "quits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "crashes.py").write_text("import os; os._exit(9)\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["conform", "--target", target])
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.output.strip().split("\n")) == 1


@pytest.mark.no_shape_checks
def test_a_package_that_is_not_installed_is_said(monkeypatch):
    name = next((name for name, row in PUBLIC.items() if row.missing), None)
    if name is None:
        pytest.skip("every public implementation is installed")
    with pytest.raises(NotATarget, match=f"target {name}: .*not installed: pip install "):
        find_target(name)


def forever(target):
    yield 1
    while True:
        pass


def once(target):
    yield target.name


@pytest.mark.no_shape_checks
def test_a_worker_starts_again_after_a_job_that_does_not_end(few_cases):
    with Worker("faulty_kernels:correct", None, 8.0) as worker:
        job = worker.do(forever)
        assert next(job) == 1
        with pytest.raises(Stopped, match="did not answer within 8 s"):
            next(job)
        assert list(worker.do(once)) == ["faulty_kernels:correct"]


# --- gradients and caches ---------------------------------------------------------------------------------------------


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("name", "arrays", "verdict", "sentence"),
    [
        ("correct", "torch", "pass", ""),
        ("halves_the_keys", "torch", "fail", "of key: error"),
        ("refuses", "torch", "unsupported", "forward only"),
        ("infers", "torch", "unsupported", "its output carries no gradient"),
        ("tiled", "torch", "unsupported", "its output differs"),
        ("of_jax", "jax", "pass", ""),
        ("halves_the_values_of_jax", "jax", "fail", "of value: error"),
    ],
)
def test_gradients_are_judged_where_the_output_is_right(few_cases, name, arrays, verdict, sentence):
    checks = judge.judge(f"kernels_with_gradients:{name}", judge.Options(arrays)).checks
    of_gradients = [check for check in checks if check.quantity == "gradients"]
    assert len(of_gradients) == 3 * 2  # cases, dtypes
    assert {check.verdict for check in of_gradients} == {verdict}
    assert all(sentence in check.reason for check in of_gradients)


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("Right", set()),
        ("FromTheFirstKey", {"chunks", "token by token", "token by token, no RoPE", "a window, chunks"}),
        ("Endless", {"more tokens than it holds", "dynamic NTK"}),  # whose frequencies depend on max_length
        ("Without", set()),
    ],
)
def test_caches_are_judged(sample_targets, name, failing):
    target = find_target(f"layers_with_caches:{name}")
    found = [check for c in cache_checks.CASES for check in cache_checks.cache_checks(c, "float32", target) if check]
    assert {check.verdict for check in found} >= ({"unsupported"} if name == "Without" else {"pass"})
    failed = {check.case.removeprefix("caches / ") for check in found if check.verdict == "fail"}
    assert failed == failing or (failing and failed > failing)


def test_what_decoding_in_flax_does_is_found_again():
    """SPEC 4, 13: is_causal within a cache, and a cache that is full."""
    target = find_target("flax.nnx.MultiHeadAttention")
    found = {c.name: list(cache_checks.cache_checks(c, "float32", target))[-1] for c in cache_checks.CASES}
    assert found["token by token, no RoPE"].verdict == "fail"
    assert found["more tokens than it holds"].reason == "takes token 24 of 23 without an error"


# --- cases in the shapes that a target takes ----------------------------------------------------------------------


def case(name):
    return next(c for c in kernel_cases() if c.name == f"GQA 6 over 2 / {name}")


def test_a_case_is_fitted_to_what_a_target_takes():
    c = case("causal")
    assert fit(c, Limits(), layer=False) == c
    fitted = fit(c, Limits(value_size=False, head_multiple=8), layer=False)
    assert (fitted.config.head_dim, fitted.config.v_head_dim) == (16, 16)
    alone = fit(c, Limits(cross=False, wide=False), layer=True)
    assert alone.self_attention
    assert alone.S == alone.T
    assert alone.config.embed_dim == alone.config.kv_dim == 6 * c.config.head_dim
    assert fit(c, Limits(grouped=False), layer=False).name == "MHA 6 / causal"


def test_what_would_ask_something_else_is_unsupported():
    with pytest.raises(Unsupported, match="always has window = 2"):
        fit(case("window"), Limits(always={"window": 2}), layer=False)
    with pytest.raises(Unsupported, match="self-attention only"):
        fit(case("poison"), Limits(cross=False), layer=True)
    assert fit(case("plain"), Limits(always={"causal": True}), layer=False).config.causal


# --- public implementations -------------------------------------------------------------------------------------------


def test_there_are_public_targets_enough():
    assert len([row for row in PUBLIC.values() if not row.missing]) >= 15


# What each is known to differ in; all else that it can be asked must pass in float32.
NEIGHBOURS, BEFORE = "counts neighbours: W + 1 keys", "counts neighbours, the future open"
KNOWN = {
    "torch.sdpa.flash": {"alignment: top-left", "poison: values leak"},
    "onnx.reference": {
        "alignment: top-left",
        "poison: keys and values leak",
        f"window without causal: {BEFORE}",
        f"causal window of W: {NEIGHBOURS}",
        f"alignment: top-left + causal window of W: {NEIGHBOURS}",
        f"alignment: top-left + window without causal: {BEFORE}",
        "window without causal: ignored",
    },
    "transformers.gpt_oss.eager": {"boolean mask: added as a number, but for padding"},
    "onnxruntime.GroupQueryAttention": set(),
}
# Differences without a name: ONNX pads a mask of one column with -inf, and takes no (B, 1, 1, S) mask with causal.
UNNAMED = {"onnx.reference": {"mask of queries", "causal and padding", "B equals K", "poison behind a window"}}


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("name", KNOWN)
def test_public_implementations_differ_in_what_is_known(name):
    checks = judge.judge(name, judge.Options(dtypes=("float32",))).checks
    single = [check for check in checks if check.column.endswith("float32")]
    assert counts(single)["pass"] >= 10
    of_values = [check for check in single if check.verdict == "fail" and check.quantity != "gradients"]
    assert {check.explanation for check in of_values} - {""} <= KNOWN[name]
    # What lasts between calls and long sequences repeat the settings of short cases, and are not searched for a name.
    short = [check for check in of_values if check.case.partition(" / ")[0] not in ("state", "long")]
    unnamed = {check.case.partition(" / ")[2] for check in short if not check.explanation}
    assert unnamed <= UNNAMED.get(name, set())
    of_gradients = [check for check in single if check.verdict == "fail" and check.quantity == "gradients"]
    assert {check.case.partition(" / ")[2] for check in of_gradients} <= {"finfo.min bias"}  # that passes one on

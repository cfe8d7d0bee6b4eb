"""Targets: public implementations by name, and what becomes of one that raises, hangs, dies or spoils its inputs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance.cases.table import kernel_cases
from conformance.checks import caches as cache_proof
from conformance.checks import judge
from conformance.report.tables import counts
from conformance.targets import PUBLIC, Limits, NotATarget, Unsupported, find_target, fit
from conformance.targets.worker import Stopped, Worker
from gqa import app

CORRECT = """
import os, sys, time
import numpy as np
import gqa_numpy

def correct(query, key, value, mask=None, *, causal=False):
    return gqa_numpy.grouped_query_attention(query, key, value, mask, causal=causal)

def raises(query, key, value, mask=None):
    raise ZeroDivisionError("no reason")

def hangs(query, key, value, mask=None, *, causal=False):
    if causal:
        time.sleep(60)
    return correct(query, key, value, mask)

def dies(query, key, value, mask=None, *, causal=False):
    if causal:
        os._exit(7)
    return correct(query, key, value, mask)

def returns_a_list(query, key, value):
    return [1.0]

def returns_another_shape(query, key, value):
    return correct(query, key, value)[0][..., :1]

def returns_another_dtype(query, key, value):
    return correct(query, key, value)[0].astype(np.float16)

def returns_nan(query, key, value):
    output = correct(query, key, value)[0]
    output[..., 0] = np.nan
    return output

def returns_integers(query, key, value):
    return np.zeros(query.shape[:3] + value.shape[3:], int)

def changes_its_inputs(query, key, value):
    output = correct(query, key, value)[0]
    key *= 2
    return output

def is_random(query, key, value):
    output = correct(query, key, value)[0]
    return output + np.random.default_rng().normal(size=output.shape).astype(output.dtype) * 1e-3

def tiled(query, key, value):
    groups = query.shape[1] // key.shape[1]
    return correct(query, *(np.tile(x, (1, groups, 1, 1)) for x in (key, value)))

def tiled_and_unscaled(query, key, value):
    return tiled(query * query.dtype.type(query.shape[-1] ** 0.5), key, value)
"""
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
def somebody(tmp_path, monkeypatch):
    """A folder with somebody's module, and few cases."""
    (tmp_path / "somebody.py").write_text(CORRECT)
    monkeypatch.chdir(tmp_path)
    names = ("plain", "causal", "bool mask")
    few = [c for c in kernel_cases() if c.grouping == "GQA 6 over 2" and c.feature.name in names]
    monkeypatch.setattr(judge, "kernel_cases", lambda: few)


def judged(name, limit=20.0):
    return judge.judge(f"somebody:{name}", None, lambda done, total: None, limit)


@pytest.mark.no_shape_checks
def test_what_is_right_passes(somebody):
    assert counts(judged("correct")) == {"pass": 12, "fail": 0, "unsupported": 0}


@pytest.mark.no_shape_checks
def test_every_fault_is_reported_as_what_it_is(somebody):
    for name, sentence in FAULTS.items():
        checks = judged(name)
        plain = [check for check in checks if check.case.endswith("/ plain") and check.quantity == "output"]
        assert [check.verdict for check in plain] == ["fail", "fail"], name
        assert all(sentence in check.reason for check in plain), (name, plain)


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(("name", "sentence"), [("hangs", "did not answer within 3 s"), ("dies", "exit code 7")])
def test_the_run_goes_on_after_one_that_does_not_answer(somebody, name, sentence):
    checks = judged(name, limit=3.0)
    assert {c.case for c in checks if c.verdict == "fail"} == {"GQA 6 over 2 / causal"}
    assert all(sentence in c.reason for c in checks if c.verdict == "fail")
    assert counts(checks)["pass"] == 8  # the cases after it too


@pytest.mark.no_shape_checks
def test_a_failing_case_names_what_reproduces_it(somebody):
    for name, names in {
        "tiled": "head order: tiled: n % K",
        "tiled_and_unscaled": "head order: tiled: n % K + scale: 1",
    }.items():
        failed = [check for check in judged(name) if check.verdict == "fail"]
        assert failed
        assert {check.explanation for check in failed} == {names}


@pytest.mark.no_shape_checks
def test_the_command_goes_on_and_exits_1(somebody):
    result = CliRunner().invoke(app, ["conform", "--target", "somebody:raises", "--json", "found.json"])
    found = json.loads(Path("found.json").read_text())
    assert result.exit_code == 1
    assert found["counts"] == {"pass": 0, "fail": 4, "unsupported": 4}  # it takes no causal


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere:thing", "target nowhere:thing: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:thing", "target broken:thing: SyntaxError"),
        ("quits:thing", "target quits:thing: SystemExit: 3"),
        ("crashes:thing", "target crashes:thing: its import ended its process with exit code 9"),
        ("torch.nothing", "expected MODULE:NAME or one of torch.sdpa, "),
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
    with pytest.raises(NotATarget, match=f"target {name}: not installed: "):
        find_target(name)


def forever(target):
    yield 1
    while True:
        pass


def once(target):
    yield target.name


@pytest.mark.no_shape_checks
def test_a_worker_starts_again_after_a_job_that_does_not_end(somebody):
    with Worker("somebody:correct", None, 8.0) as worker:
        job = worker.do(forever)
        assert next(job) == 1
        with pytest.raises(Stopped, match="did not answer within 8 s"):
            next(job)
        assert list(worker.do(once)) == ["somebody:correct"]


# --- gradients and caches ---------------------------------------------------------------------------------------------

DIFFERENTIATED = """
import jax, torch
import gqa_jax, gqa_torch

def correct(query, key, value, mask=None, *, causal=False):
    return gqa_torch.grouped_query_attention(query, key, value, mask, causal=causal)

class Halved(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, d_x):
        return d_x / 2

def halves_the_keys(query, key, value, mask=None, *, causal=False):
    return correct(query, Halved.apply(key), value, mask, causal=causal)

def refuses(query, key, value, mask=None, *, causal=False):
    if query.requires_grad:
        raise NotImplementedError("forward only")
    return correct(query, key, value, mask, causal=causal)

@torch.no_grad()
def infers(query, key, value, mask=None, *, causal=False):
    return correct(query, key, value, mask, causal=causal)

@jax.custom_vjp
def halved(x):
    return x

halved.defvjp(lambda x: (x, None), lambda _, d_x: (d_x / 2,))

def of_jax(query, key, value, mask=None, *, causal=False):
    return gqa_jax.grouped_query_attention(query, key, value, mask, causal=causal)

def halves_the_values_of_jax(query, key, value, mask=None, *, causal=False):
    return of_jax(query, key, halved(value), mask, causal=causal)

def tiled(query, key, value, mask=None, *, causal=False):
    groups = query.shape[1] // key.shape[1]
    return correct(query, key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1), mask, causal=causal)
"""


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
def test_gradients_are_judged_where_the_output_is_right(somebody, name, arrays, verdict, sentence):
    Path("differentiated.py").write_text(DIFFERENTIATED)
    checks = judge.judge(f"differentiated:{name}", arrays, lambda done, total: None)
    of_gradients = [check for check in checks if check.quantity == "gradients"]
    assert len(of_gradients) == 3 * 2  # cases, dtypes
    assert {check.verdict for check in of_gradients} == {verdict}
    assert all(sentence in check.reason for check in of_gradients)


CACHED = """
import numpy as np
import gqa_numpy

class Right(gqa_numpy.GroupedQueryAttention):
    pass

class FromTheFirstKey(Right):
    def extend(self, x, cache, *, lengths=None):
        if not cache.rolling and int(cache.length.max()):
            earlier = np.concatenate([self.seen, x], axis=1)
            output = self(earlier, offset=0, rope_length=cache.rope_length)[0][:, : x.shape[1]]
        else:
            earlier, output = x, None
        self.seen = earlier
        right, cache = super().extend(x, cache, lengths=lengths)
        return right if output is None else output, cache

class Endless(Right):
    def init_cache(self, batch_size, max_length, *, rolling=False):
        return super().init_cache(batch_size, max_length + 1, rolling=rolling)

class Without(Right):
    extend = None
"""


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("Right", set()),
        ("FromTheFirstKey", {"chunks", "token by token", "token by token, no RoPE", "a window, chunks"}),
        ("Endless", {"more tokens than it holds", "dynamic NTK"}),  # whose frequencies depend on max_length
        ("Without", set()),
    ],
)
def test_caches_are_judged(tmp_path, monkeypatch, name, failing):
    (tmp_path / "cached.py").write_text(CACHED)
    monkeypatch.chdir(tmp_path)
    target = find_target(f"cached:{name}")
    found = [check for c in cache_proof.CASES for check in cache_proof.cache_checks(c, "float32", target) if check]
    assert {check.verdict for check in found} >= ({"unsupported"} if name == "Without" else {"pass"})
    failed = {check.case.removeprefix("caches / ") for check in found if check.verdict == "fail"}
    assert failed == failing or (failing and failed > failing)


def test_what_decoding_in_flax_does_is_found_again():
    """Traps 23 and 24: is_causal within a cache, and a cache that is full."""
    target = find_target("flax.nnx.MultiHeadAttention")
    found = {c.name: list(cache_proof.cache_checks(c, "float32", target))[-1] for c in cache_proof.CASES}
    assert found["token by token, no RoPE"].verdict == "fail"
    assert found["more tokens than it holds"].reason == "takes token 24 of 23 in silence"


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
KNOWN = {
    "torch.sdpa.flash": {"alignment: top-left", "poison: values leak"},
    "onnx.reference": {
        "alignment: top-left", "poison: keys and values leak", "window without causal: W + 1 keys, the future open",
        "causal window of W: W + 1 keys", "alignment: top-left + causal window of W: W + 1 keys",
        "alignment: top-left + window without causal: W + 1 keys, the future open",
    },
    "transformers.gpt_oss": set(),
    "onnxruntime.GroupQueryAttention": set(),
}  # fmt: skip


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("name", KNOWN)
def test_public_implementations_differ_in_what_is_known(name):
    checks = judge.judge(name, None, lambda done, total: None)
    single = [check for check in checks if check.column.endswith("float32")]
    assert counts(single)["pass"] >= 10
    of_values = [check for check in single if check.verdict == "fail" and check.quantity != "gradients"]
    assert {check.explanation for check in of_values} <= KNOWN[name]
    of_gradients = [check for check in single if check.verdict == "fail" and check.quantity == "gradients"]
    assert {check.case.partition(" / ")[2] for check in of_gradients} <= {"finfo.min bias"}  # that passes one on

"""Packed and paged functions: right ones pass in every dtype, wrong ones are caught and their fault is named."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import conformance
from conformance.cases.sequences import CASES, PACKED, PAGED, ROW, compared, pages, sequences
from conformance.mutants import MUTANTS
from conformance.reference.sequences import computed
from conformance.targets import find_target
from conformance.targets.sequences import SequenceFunction, kind_of
from gqa import app

pytestmark = pytest.mark.no_shape_checks
OWN = tuple(ROW.values())
FAULTS = {
    "packed_leaks": "Causal over the packed array: a sequence attends to those before it",
    "packed_top_left": "Query i of a sequence at position i, not at S - T + i",
    "paged_reads_past_the_length": "Every slot of a sequence's blocks is read, behind its length too",
    "paged_multiplies_poison": "Slots behind a length get the weight 0, and 0 * NaN is NaN",
    "paged_ignores_the_table": "The table is not read: a sequence's blocks are the first ones in memory",
}


@pytest.fixture
def kernels(sample_targets, monkeypatch):
    monkeypatch.syspath_prepend(str(sample_targets))
    import packed_kernels

    return packed_kernels


@pytest.mark.parametrize("name", ["attention_packed", "attention_paged", "attention_paged_packed"])
def test_right_ones_pass_in_every_dtype(kernels, name):
    dtypes = ("float64", "float32", "bfloat16", "float16")
    found = conformance.judge(getattr(kernels, name), dtypes=dtypes, features=(*OWN, "plain", "causal"))
    assert found.failures == []
    own = [check for check in found.checks if check.row in OWN]
    assert len(own) == 4 * len(PACKED if name == "attention_packed" else PAGED)
    passed = [check for check in own if check.verdict == "pass"]
    if name == "attention_packed":  # every setting is one of its parameters
        assert len(passed) == len(own)
    elif name == "attention_paged":
        missing = {check.case for check in own if check not in passed}
        assert missing == {"paged cache / queries of unequal lengths"}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_one_is_caught_and_its_fault_named(kernels, name):
    found = conformance.judge(getattr(kernels, name), features=(*OWN, "plain", "causal"))
    assert found.causes, "nothing failed"
    assert set(found.causes) == {FAULTS[name]}


def test_gradients_of_a_packed_function_in_torch_are_compared():
    torch = pytest.importorskip("torch")

    def one(q, k, v, causal):
        (T, N, H), (S, K, _) = q.shape, k.shape
        k, v = (x.repeat_interleave(N // K, dim=1) for x in (k, v))
        scores = torch.einsum("tnh,snh->nts", q, k) * H**-0.5
        if causal:
            scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(S - T), -torch.inf)
        return torch.einsum("nts,snv->tnv", scores.softmax(-1), v)

    def right(query, key, value, cu_seqlens_q, cu_seqlens_k, causal=False):
        cuts = [x.diff().tolist() for x in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        parts = zip(*(x.split(n) for x, n in zip((query, key, value), cuts, strict=True)), strict=True)
        return torch.cat([one(q, k, v, causal) for q, k, v in parts])

    def detached(query, key, value, cu_seqlens_q, cu_seqlens_k, causal=False):
        return right(query, key.detach(), value, cu_seqlens_q, cu_seqlens_k, causal)

    features, options = ("plain", "causal"), {"arrays": "torch", "dtypes": ("float64",)}
    found = conformance.judge(right, features=features, **options)
    gradients = [c for c in found.checks if c.quantity == "gradients"]
    assert found.failures == []
    assert {c.verdict for c in gradients} == {"pass"}
    broken = conformance.judge(detached, features=features, **options)
    assert {c.quantity for c in broken.failures} == {"gradients"}


def test_a_signature_says_what_a_function_is():
    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, **more): ...
    def kvcache(q, k_cache, v_cache, cache_seqlens=None, block_table=None, causal=False): ...
    def plain(query, key, value, mask=None, **more): ...

    assert [kind_of(f) for f in (varlen, kvcache, plain)] == ["packed", "paged", None]


def test_a_paged_target_is_found_by_name(sample_targets):
    target = find_target("packed_kernels:attention_paged")
    assert isinstance(target, SequenceFunction)
    assert (target.kind, target.limits.layout) == ("paged", "BNTH")


def test_blocks_hold_each_sequence_and_nothing_of_another():
    for case in PAGED:
        found = sequences(case, "float64")
        held = pages(case, found)
        needed = -(-held.lengths // case.block)
        owned = [list(table[:count]) for table, count in zip(held.tables, needed, strict=True)]
        for b, length in enumerate(held.lengths):
            mine = held.key[held.tables[b]].reshape(-1, *held.key.shape[2:])[:length]
            assert np.array_equal(mine, found.of(b).key[0].swapaxes(0, 1)), case.name
        flat = [block for blocks in owned for block in blocks]
        assert len(flat) - len(set(flat)) == case.shared, case.name
        if sum(needed) > 2:
            assert flat != sorted(flat), f"{case.name}: its blocks are in the order of storage"


def test_the_command_judges_one_case(sample_targets, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "found.json"
    options = ["--target", "packed_kernels:packed_leaks", "--case", "packed sequences / *", "--json", str(file)]
    result = CliRunner().invoke(app, ["conform", *options])
    assert result.exit_code == 1, result.output
    assert FAULTS["packed_leaks"] in result.output
    rows = json.loads(file.read_text())["checks"]
    assert {row["case"].split(" / ")[0] for row in rows} == {"packed sequences"}


@pytest.mark.parametrize("kind", ROW)
def test_no_two_planted_faults_give_the_same_on_every_case(kind):
    drawn = [(case, sequences(case, "float64")) for case in CASES[kind]]
    seen: dict[bytes, str] = {}
    for mutant in MUTANTS[kind]:
        given = b"".join(compared(case, found, computed(mutant(), case, found)).tobytes() for case, found in drawn)
        assert seen.setdefault(given, mutant.__name__) == mutant.__name__
    assert len(seen) == len(MUTANTS[kind])

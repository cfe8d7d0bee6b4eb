"""The studies measure what they say. How fast anything is depends on the machine, and is not tested."""

from __future__ import annotations

import csv
import json
from itertools import count

import numpy as np
import pytest

from gqa_studies import machine, memory_peak, speed, timing
from gqa_studies.timed_call import TimedCall
from tests.studies.helpers import one_line, run

pytestmark = pytest.mark.no_shape_checks


def test_the_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    pairs = timing.Pairs(ours=(1.0, 10.0, 2.0), theirs=(2.0, 30.0, 20.0))
    assert pairs.ratio() == 3.0  # of 2, 3 and 10; the medians would give 20 / 2
    assert (pairs.ratio(0.0), pairs.ratio(1.0)) == (2.0, 10.0)


def test_contenders_run_in_turn_after_a_warm_up():
    ran = []
    clock = count(1)

    def contender(name):
        return lambda: ran.append(name) or float(next(clock))

    pairs = timing.paired(contender("ours"), contender("theirs"), budget=0.0)
    assert ran == ["ours", "theirs"] * (1 + timing.FEWEST)
    assert pairs.ours == (3.0, 5.0, 7.0, 9.0, 11.0)
    assert pairs.theirs == (4.0, 6.0, 8.0, 10.0, 12.0)


@pytest.mark.parametrize("row", speed.chosen(None, quick=True), ids=lambda row: row.text)
def test_every_row_runs_and_its_contender_computes_the_same(row):
    figure = speed.measure(row, machine.Limits(2**10, 16), budget=0.0)
    assert figure.pairs == timing.FEWEST
    assert figure.ratio > 0
    assert (figure.gigabytes_per_second is not None) == (row.case.T == 1 and row.case.lengths is None)


def test_bytes_and_flops_of_a_case():
    case = TimedCall(T=1, S=4096)
    assert case.read_bytes == 2 * 8 * 4096 * 128 * 4
    assert TimedCall(T=1, S=4096, K=1, dtype="bfloat16").read_bytes == case.read_bytes // 16
    assert case.flops == 2 * (2 * 32 * 4096 * 128)


def test_the_roofline_is_the_slower_of_reading_and_multiplying(monkeypatch):
    limits = machine.Limits(2**10, 16)
    for reading, multiplying in ((2.0, 1.0), (1.0, 2.0)):
        monkeypatch.setattr(limits, "seconds_to_read", lambda _, seconds=reading: seconds)
        monkeypatch.setattr(limits, "seconds_to_multiply", lambda _, seconds=multiplying: seconds)
        assert limits.seconds_of_roofline(TimedCall(T=1, S=4096)) == 2.0


def test_a_contender_that_computes_something_else_is_refused():
    row = speed.chosen("numpy decode", quick=True)[0]
    ours = np.ones((1, 2, 3, 4), np.float32)
    speed.require_same(row, ours, ours + 1e-6)
    for theirs in (ours + 1e-3, ours * np.nan, ours[:, :1]):
        with pytest.raises(speed.DifferentFunction):
            speed.require_same(row, ours, theirs)


def test_such_a_contender_fails_the_run(monkeypatch):
    monkeypatch.setitem(speed.SAME, "float32", -1.0)
    result = run("speed", "--quick", "--only", "numpy decode")
    assert result.exit_code == 1
    assert "another function" in one_line(result)


def test_one_row_of_a_goal_is_enough():
    def figure(ratio, goal):
        pairs = timing.Pairs(ours=(1.0,), theirs=(ratio,))
        return speed.figure(speed.Row("torch", "decode", TimedCall(1, 64), "peer", 2.0, goal), pairs, None)

    figures = [figure(3.0, "a"), figure(1.0, "a"), figure(1.0, "b")]
    assert [speed.verdict(each, figures) for each in figures] == ["reached", "reached instead", "missed"]


def test_every_claim_has_its_row():
    rows = speed.rows()
    assert len({row.text for row in rows}) == len(rows)
    assert {row.backend for row in rows} == {"numpy", "torch", "jax"}


def test_the_command_writes_what_it_prints(tmp_path):
    json_file, csv_file = tmp_path / "speed.json", tmp_path / "speed.csv"
    result = run("speed", "--quick", "--only", "numpy*prefill", "--json", str(json_file), "--csv", str(csv_file))
    assert result.exit_code == 0, result.output
    found = json.loads(json_file.read_text())
    assert found["machine"]["cpus"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert [row["contender"] for row in found["rows"]] == ["onnx reference evaluator"] * 2
    rows = list(csv.DictReader(csv_file.read_text().splitlines()))
    assert [float(row["ratio"]) for row in rows] == [row["ratio"] for row in found["rows"]]


def test_a_missing_package_is_said_and_left_out(monkeypatch):
    monkeypatch.setattr(speed, "installed", lambda package: package == "onnx")
    result = run("speed", "--quick", "--only", "decode")
    assert result.exit_code == 0, result.output
    output = one_line(result)
    assert "torch is not installed" in output
    assert "jax and flax are not installed" in output
    assert "onnx is not installed" not in output


@pytest.mark.parametrize("study", ["speed", "memory-peak", "model-speed"])
def test_a_pattern_that_matches_no_row_is_refused(study):
    result = run(study, "--only", "nosuchrow")
    assert result.exit_code == 2
    assert result.output.startswith("--only: no row contains 'nosuchrow'; the rows are: gqa_")


def test_quick_files_say_that_they_mean_nothing(tmp_path):
    json_file, csv_file = tmp_path / "speed.json", tmp_path / "speed.csv"
    result = run("speed", "--quick", "--only", "numpy decode", "--json", str(json_file), "--csv", str(csv_file))
    assert result.stdout.startswith("QUICK: means nothing\n")
    assert json.loads(json_file.read_text())["note"] == "QUICK: means nothing"
    assert {row["note"] for row in csv.DictReader(csv_file.read_text().splitlines())} == {"QUICK: means nothing"}


def test_peak_memory_counts_what_a_call_frees_again():
    held = np.ones(2**23)  # 64 MiB before the call are not the call's
    assert memory_peak.peak_above(lambda: None)[0] < 2**25
    peak, _ = memory_peak.peak_above(lambda: float(np.ones(2**23).sum()))
    assert 0.9 * held.nbytes < peak < 1.5 * held.nbytes


@pytest.mark.parametrize("load", memory_peak.LOADS)
@pytest.mark.parametrize("backend", memory_peak.BACKENDS)
def test_every_memory_row_is_a_call_that_runs(backend, load):
    context, weights = memory_peak.call(backend, memory_peak.LOADS[load], length=16)()
    assert context.shape == (1, memory_peak.N, 16, memory_peak.H)
    assert weights is None


@pytest.mark.parametrize("backend", memory_peak.BACKENDS)
def test_peak_memory_holds_the_result_at_least(backend):
    """Inputs that are freed only during the call would hide it."""
    peak = memory_peak.measure(backend, "causal, softcap, sinks, floating mask", length=1024)
    assert peak.peak_mebibytes >= 4 * memory_peak.N * 1024 * memory_peak.H / memory_peak.MEBIBYTE


def test_the_memory_command_writes_what_it_prints(tmp_path):
    json_file = tmp_path / "memory.json"
    result = run("memory-peak", "--quick", "--only", "numpy*boolean", "--json", str(json_file))
    assert result.exit_code == 0, result.output
    (row,) = json.loads(json_file.read_text())["rows"]
    assert row["limit_mebibytes"] == 1536
    assert row["verdict"] == "reached"

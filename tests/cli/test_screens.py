"""What people see first: the verdict on top, 24 lines of 80 columns, nothing cut."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from conformance.cases.table import FEATURES
from conformance.checks.check import Check
from conformance.checks.judge import Options
from conformance.mutants import MUTANTS
from conformance.mutants.run import MutantResult
from conformance.report import mutants, summary, tables
from gqa import __version__, app, conform_run
from gqa.conform_files import Reports

pytestmark = pytest.mark.no_shape_checks
PAIRS = [f"{a} to {b}" for a in ("numpy", "torch", "jax") for b in ("numpy", "torch", "jax") if a != b]
NOTHING_WRITTEN = Reports(None, None, None, Options())
TARGET = "my_package.layers:MyAttention"


def screen(parts: Iterable[Any]) -> list[str]:
    """The lines that a terminal of 80 columns shows."""
    console = Console(file=io.StringIO(), width=80)
    for part in parts:
        console.print(part, highlight=False)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    return lines


def check(feature: str, column: str, verdict: str = "pass", reason: str = "", explanation: str = "") -> Check:
    error = 7.46 if verdict == "pass" else float("inf") if verdict == "fail" else 0.0
    return Check("GQA 6 over 2", f"GQA 6 over 2 / {feature}", column, "output", error, verdict, reason, explanation)


def of_backends() -> list[Check]:
    columns = [f"{pair}, {dtype}" for pair in PAIRS for dtype in ("float64", "float32")]
    own = [check(feature.name, column) for feature in FEATURES for column in columns]
    return [*own, Check("SmolLM2 layer 3", "SmolLM2 layer 3 / real weights", columns[0], "output", 11.1, "pass")]


def of_target() -> list[Check]:
    column = f"{TARGET}, float32"
    causes = [f"convention {number}: another choice" for number in range(9)]
    return [
        check("plain", column),
        *(check("causal", column, "fail", "error 1.99", "alignment: top-left") for _ in range(14)),
        *(check("sinks", column, "fail", "error 1.99", cause) for cause in causes),
        check("window", column, "fail", "raised ValueError: a long message that says much " * 2),
        *(check("chunk", column, "unsupported", f"takes no {name}") for name in ("chunk", "window, sinks", "offset")),
        *(check("poison", column, "unsupported", f"cannot do {number}") for number in range(9)),
    ]


def test_our_backends_agree_on_one_screen():
    results = [MutantResult("TiledHeads", "a head too far", 3, ("a case",))] * 80
    lines = screen([summary.header(142), *summary.backends_screen(of_backends(), results, [])])
    assert len(lines) <= 24
    assert lines[0].endswith("2 min 22 s")
    assert lines[1].startswith("AGREE  ")
    assert "80 of 80 planted mutants caught" in lines[1]
    rows = [line for line in lines if line.endswith(" ok")]
    assert {row[1:23].strip() for row in rows} >= {*summary.SUBJECTS.values(), summary.OTHERS, summary.REAL}
    assert all(row.count("7.5") == 6 for row in rows if "SmolLM2" not in row)


def test_a_difference_and_a_mutant_that_is_not_caught_are_on_the_first_lines():
    wrong = check("causal", "torch to jax, float64", "fail", "error 0.5", "alignment: top-left")
    missed = MutantResult("SinkCapped", "a sink that is capped", 3, ())
    parts = summary.backends_screen([*of_backends(), wrong], [missed], ["real weights: x"])
    lines = screen([summary.header(9), *parts])
    assert len(lines) <= 27
    assert lines[1].startswith("DIFFER  ")
    text = "\n".join(lines)
    assert "1 failed; 0 of 1 planted mutants caught" in lines[1]
    assert "alignment: top-left (SPEC 4: bottom-right)" in text
    assert "not caught: SinkCapped" in text
    assert "left out: real weights: x" in text
    assert "every cell is within its bound" not in text


def test_one_backend_alone_says_that_nothing_was_compared():
    lines = screen(summary.backends_screen([check("plain", "numpy kernel, float64")], [], ["gqa_torch: not there"]))
    assert lines[0].startswith("NOT COMPARED  ")
    assert "Only one backend is installed" in lines[1]
    assert not any("Worst error" in line for line in lines)


def test_one_backend_alone_is_no_success(monkeypatch):
    alone = [check("plain", "numpy kernel, float64")]
    monkeypatch.setattr(conform_run, "_run", lambda *, with_real: (alone, []))
    assert conform_run.backends(NOTHING_WRITTEN, False, synthetic=True) == 2
    monkeypatch.setattr(conform_run, "_run", lambda *, with_real: (of_backends(), []))
    assert conform_run.backends(NOTHING_WRITTEN, False, synthetic=True) == 0


def test_a_target_gets_its_causes_and_the_next_command():
    lines = screen([summary.header(12), *summary.target_screen(TARGET, of_target())])
    assert len(lines) <= 24
    assert lines[1] == "DIFFERS  1 checks passed, 24 failed, 12 not supported"
    text = "\n".join(lines)
    assert "  14  alignment: top-left (SPEC 4: bottom-right)" in text
    assert "and 5 more with --details" in text
    assert "It takes no chunk, window, sinks, offset" in text
    assert f"gqa dialect {TARGET}" in text
    assert f"gqa trace numpy {TARGET} --case 'GQA 6 over 2 / causal'" in text


def test_a_target_that_is_right_agrees_and_one_that_raised_gets_the_remedy():
    column = "mine:f, float64"
    assert screen(summary.target_screen("mine:f", [check("plain", column)]))[0].startswith("AGREES  1 checks passed")
    raised = [check("plain", column, "fail", "raised TypeError: repeat() takes 2 arguments")]
    text = " ".join(screen(summary.target_screen("mine:f", raised)))
    assert "raised TypeError: repeat() takes 2 arguments" in text
    assert "needs --arrays torch or --arrays jax" in text
    assert "needs --arrays" not in " ".join(screen(summary.target_screen("mine:f", raised, "torch")))


def test_many_targets_are_a_line_each():
    names = [f"transformers.models.number{number}" for number in range(14)]
    found = {name: of_target() for name in names}
    lines = screen([summary.header(12), *summary.targets_screen(found, ["target mlx: not installed"])])
    assert len(lines) <= 24
    assert sum("alignment: top-left" in line for line in lines) == 14


def test_the_details_fit_80_columns_too():
    lines = screen([*tables.matrices(of_backends(), "Ours"), *tables.matrices(of_target(), TARGET)])
    assert any("7.5" in line for line in lines)
    failed = screen(tables.failures(of_target()))
    assert sum("alignment: top-left" in line for line in failed) == 1
    assert failed.count("  output float32: error 1.99") == 1 + 9  # once for each cause


def test_every_planted_mutant_has_its_line():
    results = [
        MutantResult(bug.__name__, (bug.__doc__ or "").split("\n")[0], 87, ("GQA 6 over 2 / plain",) * 40, family)
        for family, bugs in MUTANTS.items()
        for bug in bugs
    ]
    elsewhere = {name: {result.bug: ("a test",) * 93 for result in results} for name in ("onnx", "torch", "jax")}
    power = mutants.Power(results, elsewhere, {"onnx": (60, 93)}, [])
    lines = screen(mutants.power_screen(power))
    assert len(lines) <= 24
    assert lines[0].startswith(f"ALL CAUGHT  {len(results)} of {len(results)}")
    details = screen([*mutants.power_details(power), mutants.mutant_table(results)])
    for result in results:
        assert any(result.bug in line for line in details), result.bug


# --- the command itself ----------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def commands(node: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    node = node or typer.main.get_command(app)
    below = [found for name, each in getattr(node, "commands", {}).items() for found in commands(each, (*path, name))]
    return [path, *below]


@pytest.mark.parametrize("path", commands(), ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_80_columns(path, option):
    result = run(*path, option)
    assert result.exit_code == 0
    assert result.output.count("\n") >= 5
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output


def test_gqa_alone_shows_what_to_do_next():
    result = run()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in ("conform", "dialect", "trace", "port", "verify", "study memory"):
        assert f"gqa {name}" in result.output


def test_help_loads_nothing_that_computes():
    """So that help and completion come at once: no array library, and none of the packages that do the work."""
    code = "import sys, gqa.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "torch", "jax", "gqa_spec", "gqa_weights", "gqa_numpy", "conformance", "gqa_studies"}
    assert not heavy & set(done.stdout.split())


def test_the_version_is_the_packages():
    assert run("--version").output == f"gqa {__version__}\n"


WRONG = {
    "gqa: no such command 'trac'. Did you mean 'trace'? (see gqa --help)": ("trac",),
    "gqa inspect: missing argument 'path' (see gqa inspect --help)": ("inspect",),
    "trace: expected A and B, such as `gqa trace torch my_module:MyAttention`, or --hf MODEL": ("trace",),
    "--dtype: expected one of float64, float32, got 'float46'; did you mean float64?": (
        "verify",
        "a",
        "b",
        "--dtype",
        "float46",
    ),
    "--to: expected one of huggingface": ("port", "a", "b", "--to", "hf"),
    "TARGET: expected MODULE:NAME or the name of a public implementation, got 'torch.sdp'; did you mean torch.sdpa?": (
        "dialect",
        "torch.sdp",
    ),
    "--target: expected MODULE:NAME, got 'models/mine.py:Attention'; did you mean models.mine:Attention?": (
        "conform",
        "--target",
        "models/mine.py:Attention",
    ),
    "--arrays: applies to --target or --all alone, and neither is given": ("conform", "--arrays", "torch"),
    "--all: cannot be given with --target": ("conform", "--all", "--target", "torch.sdpa"),
    "--html: cannot be given with --mutants": ("conform", "--mutants", "--html", "page.html"),
    "--html: there is no folder nowhere": ("conform", "--html", "nowhere/page.html"),
    "--picture: there is no folder nowhere": ("trace", "numpy", "torch", "--picture", "nowhere/a.png"),
    "--json: expected a file, . is a folder": ("inspect", "a", "--json", "."),
    "--seed: applies to --method random alone, got --method mean": (
        "pool",
        "a",
        "b",
        "--num-kv-heads",
        "1",
        "--seed",
        "3",
    ),
    "--backend: expected one of torch, jax, numpy, got 'pytorch'; did you mean torch?": (
        "generate",
        "a",
        "text",
        "--backend",
        "pytorch",
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_usage_is_one_sentence_that_names_the_remedy(sentence):
    result = run(*WRONG[sentence])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_what_exists_needs_force(tmp_path):
    result = run("port", str(tmp_path / "source"), str(tmp_path), "--to", "meta")
    assert result.exit_code == 2
    assert result.stderr == f"DEST: {tmp_path} exists; --force overwrites it\n"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("study", "memory", "--folder", "results"), "--folder: results"),
        (("study", "speed", "--csv", "speed.csv"), "--csv: speed.csv"),
        (("conform", "--html", "page.html"), "--html: page.html"),
        (("inspect", "a", "--json", "a.json"), "--json: a.json"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence_before_the_work(tmp_path, monkeypatch, arguments, option):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # who runs this may be root, whom no permission stops
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (2, f"{option} cannot be written: permission denied\n")
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())

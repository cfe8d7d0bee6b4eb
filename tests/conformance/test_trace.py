"""trace: equal attentions agree at every stage, and each planted difference is named by the stage it is in."""

from __future__ import annotations

import json
import re
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.report.picture import place
from conformance.targets import TargetClass, find_target
from conformance.trace.compare import BackendSide, Trace, model_traces, target_side, traces
from gqa import app
from gqa_spec import AttentionConfig, ModelConfig
from tests.helpers import random_model

pytestmark = pytest.mark.no_shape_checks


@pytest.fixture(autouse=True)
def _targets(sample_targets):
    """Every test runs where the sample targets are."""


def trace(*arguments: str) -> tuple[int, dict[str, Any]]:
    """`gqa trace ... --json`: exit code and what it found."""
    result = CliRunner().invoke(app, ["trace", *arguments, "--json", "-"])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


@dataclass
class Here:
    """A worker in this process, which starts at once."""

    path: str

    def __post_init__(self) -> None:
        sys.modules.pop(self.path.partition(":")[0], None)
        self.target = find_target(self.path)
        self.kind = "class" if isinstance(self.target, TargetClass) else "function"
        self.limits = self.target.limits

    def do(self, job, *arguments):
        return job(self.target, *arguments)


def traced(backend: str, target: str, case: str, dtype: str) -> Trace:
    [found] = traces((BackendSide(backend), target_side(Here(target))), case, dtype)
    return found


SQUARE = "GQA 6 over 2 / square"


@pytest.mark.parametrize(
    ("target", "first", "explanation"),
    [
        ("torch_layers:Tiled", "weights", "torch_layers:Tiled computes head order: tiled: n % K"),
        ("torch_layers:LoudKeys", "k_proj", ""),
        ("torch_layers:WrongOutput", "output", ""),
        ("torch_layers:Tells", "scores", ""),
    ],
)
def test_the_first_wrong_stage_of_a_class_is_named(target, first, explanation):
    found = traced("numpy", target, SQUARE, "float32")
    assert not found.same
    assert found.first.stage == first
    assert found.first.reason.startswith(target)
    assert found.explanation == explanation
    assert "q_proj" in [stage.stage for stage in found.compared if not stage.reason]


@pytest.mark.parametrize("target", ["torch_layers:Right", "torch_layers:Silent"])
def test_a_right_class_agrees_at_every_stage_that_it_shows(target):
    found = traced("torch", target, SQUARE, "float64")
    assert found.same
    shown = [stage for stage in found.compared if stage.errors[1] is not None]
    weights = [] if target.endswith("Silent") else ["weights"]
    assert [stage.stage for stage in shown] == ["q_proj", "k_proj", "v_proj", *weights, "output"]
    assert max(stage.errors[1] for stage in shown) > 0  # it was computed, not copied


def test_a_function_without_weights_is_asked_for_them_with_the_identity():
    code, found = trace("numpy", "numpy_kernels:top_left_output", "--dtype", "float64")
    assert code == 1
    assert found["agreed"][0] == "GQA 6 over 2 / plain"  # weights too
    assert "GQA 6 over 2 / padding" in found["agreed"]
    assert (found["case"], found["first"]) == ("GQA 6 over 2 / causal", "weights")


def test_causal_from_the_top_left_is_seen_where_it_starts():
    code, found = trace(
        "numpy", "numpy_kernels:top_left_output", "--case", "GQA 6 over 2 / causal", "--dtype", "float64"
    )
    assert code == 1
    assert found["explanation"] == "numpy_kernels:top_left_output computes alignment: top-left"
    most = found["differ_most"]
    query, key = most["index"][2:]
    assert (most["b"] == 0) == (key > query)  # T = 11, S = 13: key query + 1 is visible from the bottom-right only
    assert most["a"] != most["b"]


@pytest.mark.parametrize(
    ("target", "case", "fault"),
    [
        ("faulty_kernels:raises", "MQA 5 / plain", "raised ZeroDivisionError: no reason"),
        ("faulty_kernels:hangs", "MQA 5 / causal", "did not answer within 2 s"),
    ],
)
def test_a_target_without_an_answer_is_said_to_have_none(target, case, fault):
    code, found = trace("numpy", target, "--case", case, "--time-limit", "2")
    assert code == 1
    assert fault in found["fault"]
    assert found["stages"] == []


def test_backends_agree_in_every_stage_of_layer_and_kernel():
    [layer] = traces((BackendSide("torch"), BackendSide("numpy")), "MQA 3 / sinks", "float64")
    assert layer.same
    assert [c.stage for c in layer.compared] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "scores",
        "masked",
        "weights",
        "logsumexp",
        "context",
        "output",
    ]
    [kernel] = traces((BackendSide("jax"), BackendSide("torch")), "MQA 5 / sinks", "float32", kernel=True)
    assert kernel.same
    assert [c.stage for c in kernel.compared] == ["scores", "masked", "weights", "logsumexp", "context"]
    assert kernel.compared[0].between > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["numpy", "nowhere:Thing"], "target nowhere:Thing: ModuleNotFoundError"),
        (
            ["numpy_kernels:top_left_output", "torch_layers:Right"],
            "a function and a class have no case in common",
        ),
        (["numpy", "torch", "--case", "plain"], "case: no case of a class is called 'plain'"),
        (
            ["numpy", "faulty_kernels:raises", "--case", "MQA 5 / window"],
            "faulty_kernels:raises: takes no causal, window",
        ),
        (
            ["torch_layers:Right", "torch_layers.py"],
            "expected a backend or a checkpoint beside torch_layers.py, got 'torch_layers:Right'",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(arguments, sentence):
    result = CliRunner().invoke(app, ["trace", *arguments])
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1


# --- checkpoints -----------------------------------------------------------------------------------------------------

LAYER = AttentionConfig(embed_dim=28, num_heads=6, num_kv_heads=2, head_dim=12, causal=True, qk_norm="rms")
CONFIG = ModelConfig(attention=(LAYER, replace(LAYER, window=5)), feed_forward_size=37, vocab_size=41)


def test_of_two_checkpoints_the_layer_and_stage_are_named():
    other = random_model(CONFIG)
    other.weights["blocks.1.attention.k_norm.weight"][3] += 0.5
    first, second = model_traces(random_model(CONFIG), other, ("numpy", "torch"), "float64")
    assert first.same
    assert not second.same
    assert (second.case, second.first.stage) == ("layer 1 attention", "k_norm")
    shown = place(*second.arrays)
    assert (shown.stage, shown.axes) == ("weights", "BNTS")


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_place_is_where_the_two_differ_most():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 3, 5, 7))
    b = a + rng.normal(size=a.shape) * 1e-3
    b[1, 2, 4, 6] += 0.5
    shown = place({"weights": a, "output": a[:, 0]}, {"weights": b})
    assert (shown.index, shown.lead) == ((1, 2, 4, 6), "batch row 1, head 2")
    assert shown.numbers == (a[1, 2, 4, 6], b[1, 2, 4, 6])
    b[0, 1, 2, 3] = np.nan  # no number beside a number is the largest difference
    assert place({"weights": a}, {"weights": b}).index == (0, 1, 2, 3)
    assert place({"weights": a}, {"output": b}) is None


def test_the_picture_is_a_png_of_three_panels(tmp_path):
    from matplotlib import image

    path = tmp_path / "seen.png"
    asked = [
        "trace",
        "numpy",
        "numpy_kernels:top_left_output",
        "--case",
        "GQA 6 over 2 / causal",
        "--picture",
        str(path),
    ]
    assert CliRunner().invoke(app, asked).exit_code == 1
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width > 2 * height > 500
    pixels = image.imread(path)[:, :, :3]
    thirds = [pixels[:, i * width // 3 : (i + 1) * width // 3] for i in range(3)]
    colourful = [float((np.ptp(third, axis=2) > 0.3).mean()) for third in thirds]
    assert min(colourful[:2]) > 0.2  # viridis is all colour; a difference is mostly white
    assert 0.001 < colourful[2] < colourful[0]


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_shows_what_happens(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    source = next(text for language, text in blocks if language == "python")
    shown = next(text for _, text in blocks if "first stage that differs" in text)
    (tmp_path / "my_module.py").write_text(source)
    sys.modules.pop("my_module", None)
    command = re.search(r"`gqa (trace numpy my_module:attention [^`]*)`", guide)[1]
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    printed, shown = (re.sub(r"at most [\d.e-]+\s+allowed", "at most ... allowed", s) for s in (result.output, shown))
    assert printed.startswith(shown)

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
from conformance.targets import ForeignClass, find_target
from conformance.trace.attentions import BackendSide, Trace, model_traces, target_side, traces
from gqa import app
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.model_config import model_weight_shapes

pytestmark = pytest.mark.no_shape_checks

SOMEBODY = '''
import time
import numpy as np
import torch


class Right(torch.nn.Module):
    """Grouped-query attention as its author would write it; every part can be got wrong by a subclass."""

    def __init__(self, embed_dim, num_heads, num_kv_heads, causal=False):
        super().__init__()
        H = embed_dim // num_heads
        self.heads, self.groups, self.causal = num_heads, num_heads // num_kv_heads, causal
        self.q_proj = torch.nn.Linear(embed_dim, num_heads * H, bias=False)
        self.k_proj = torch.nn.Linear(embed_dim, num_kv_heads * H, bias=False)
        self.v_proj = torch.nn.Linear(embed_dim, num_kv_heads * H, bias=False)
        self.o_proj = torch.nn.Linear(num_heads * H, embed_dim, bias=False)

    def split(self, x, heads):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def shared(self, x):
        return x.repeat_interleave(self.groups, dim=1)

    def forward(self, query, key=None, value=None, mask=None):
        q, k, v = self.q_proj(query), self.k_proj(query), self.v_proj(query)
        q, k, v = self.split(q, self.heads), *(self.shared(self.split(x, self.heads // self.groups)) for x in (k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
        weights = scores.softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Tiled(Right):
    def shared(self, x):
        return x.repeat(1, self.groups, 1, 1)


class LoudKeys(Right):
    def load_state_dict(self, weights):
        super().load_state_dict({name: 1.25 * x if name == "k_proj.weight" else x for name, x in weights.items()})


class WrongOutput(Right):
    def forward(self, *arguments):
        output, weights = super().forward(*arguments)
        return output + output.mean(), weights


class Silent(Right):
    def forward(self, *arguments):
        return super().forward(*arguments)[0]


class Tells(Right):
    """It shows its scores, which are not scaled, and is right otherwise."""

    def trace(self, query, key=None, value=None, mask=None):
        q, k = self.split(self.q_proj(query), self.heads), self.split(self.k_proj(query), self.heads // self.groups)
        return {"q_proj": q, "k_proj": k, "scores": q @ self.shared(k).mT}


def context(query, key, value, mask=None, *, causal=False):
    """No weights; a query too early is aligned top-left."""
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, groups, axis=1) for x in (key, value))
    scores = query @ key.swapaxes(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def raising(query, key, value, mask=None):
    raise ArithmeticError("no luck")


def hanging(query, key, value, mask=None):
    time.sleep(600)
'''


@pytest.fixture(autouse=True)
def _somebody(tmp_path, monkeypatch):
    (tmp_path / "somebody.py").write_text(SOMEBODY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def trace(*arguments: str) -> tuple[int, dict[str, Any]]:
    """`gqa trace ... --json`: exit code and what it found."""
    result = CliRunner().invoke(app, ["trace", *arguments, "--json"])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


@dataclass
class Here:
    """A worker in this process, which starts at once."""

    path: str

    def __post_init__(self) -> None:
        sys.modules.pop("somebody", None)
        self.target = find_target(self.path)
        self.kind = "class" if isinstance(self.target, ForeignClass) else "function"

    def do(self, job, *arguments):
        return job(self.target, *arguments)


def traced(backend: str, target: str, case: str, dtype: str) -> Trace:
    [found] = traces((BackendSide(backend), target_side(Here(target))), case, dtype)
    return found


SQUARE = "GQA 6 over 2 / square"


@pytest.mark.parametrize(
    ("target", "first", "explanation"),
    [
        ("somebody:Tiled", "weights", "somebody:Tiled computes head order: tiled: n % K"),
        ("somebody:LoudKeys", "k_proj", ""),
        ("somebody:WrongOutput", "output", ""),
        ("somebody:Tells", "scores", ""),
    ],
)
def test_the_first_wrong_stage_of_a_class_is_named(target, first, explanation):
    found = traced("numpy", target, SQUARE, "float32")
    assert not found.same
    assert found.first.stage == first
    assert found.first.reason.startswith(target)
    assert found.explanation == explanation
    assert "q_proj" in [stage.stage for stage in found.compared if not stage.reason]


@pytest.mark.parametrize("target", ["somebody:Right", "somebody:Silent"])
def test_a_right_class_agrees_at_every_stage_that_it_shows(target):
    found = traced("torch", target, SQUARE, "float64")
    assert found.same
    shown = [stage for stage in found.compared if stage.errors[1] is not None]
    weights = [] if target.endswith("Silent") else ["weights"]
    assert [stage.stage for stage in shown] == ["q_proj", "k_proj", "v_proj", *weights, "output"]
    assert max(stage.errors[1] for stage in shown) > 0  # it was computed, not copied


def test_a_function_without_weights_is_asked_for_them_with_the_identity():
    code, found = trace("numpy", "somebody:context", "--dtype", "float64")
    assert code == 1
    assert found["agreed"][0] == "GQA 6 over 2 / plain"  # weights too
    assert "GQA 6 over 2 / padding" in found["agreed"]
    assert (found["case"], found["first"]) == ("GQA 6 over 2 / causal", "weights")


def test_causal_from_the_top_left_is_seen_where_it_starts():
    code, found = trace("numpy", "somebody:context", "--case", "GQA 6 over 2 / causal", "--dtype", "float64")
    assert code == 1
    assert found["explanation"] == "somebody:context computes alignment: top-left"
    most = found["differ_most"]
    query, key = most["index"][2:]
    assert (most["b"] == 0) == (key > query)  # T = 11, S = 13: key query + 1 is visible from the bottom-right only
    assert most["a"] != most["b"]


@pytest.mark.parametrize(
    ("target", "fault"),
    [("somebody:raising", "raised ArithmeticError: no luck"), ("somebody:hanging", "did not answer within 2 s")],
)
def test_a_target_without_an_answer_is_said_to_have_none(target, fault):
    code, found = trace("numpy", target, "--case", "MQA 5 / plain", "--time-limit", "2")
    assert code == 1
    assert fault in found["fault"]
    assert found["stages"] == []


def test_backends_agree_in_every_stage_of_layer_and_kernel():
    [layer] = traces((BackendSide("torch"), BackendSide("numpy")), "MQA 3 / sinks", "float64")
    assert layer.same
    assert [c.stage for c in layer.compared] == [
        "q_proj", "k_proj", "v_proj", "scores", "masked", "weights", "context", "output"
    ]  # fmt: skip
    [kernel] = traces((BackendSide("jax"), BackendSide("torch")), "MQA 5 / sinks", "float32", kernel=True)
    assert kernel.same
    assert [c.stage for c in kernel.compared] == ["scores", "masked", "weights", "context"]
    assert kernel.compared[0].between > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["numpy", "nowhere:Thing"], "target nowhere:Thing: ModuleNotFoundError"),
        (["somebody:context", "somebody:Right"], "a function and a class have no case in common"),
        (["numpy", "torch", "--case", "plain"], "case: no case of a class is called 'plain'"),
        (["numpy", "somebody:raising", "--case", "MQA 5 / window"], "somebody:raising: takes no causal, window"),
        (
            ["somebody:Right", "somebody.py"],
            "expected a backend or a checkpoint beside somebody.py, got 'somebody:Right'",
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


@dataclass
class Model:
    config: ModelConfig
    weights: dict[str, np.ndarray]


def drawn() -> Model:
    rng = np.random.default_rng(0)
    shapes = model_weight_shapes(CONFIG).items()
    return Model(CONFIG, {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes})


def test_of_two_checkpoints_the_layer_and_stage_are_named():
    other = drawn()
    other.weights["blocks.1.attention.k_norm.weight"][3] += 0.5
    first, second = model_traces(drawn(), other, ("numpy", "torch"), "float64")
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
    asked = ["trace", "numpy", "somebody:context", "--case", "GQA 6 over 2 / causal", "--picture", str(path)]
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
    shown = next(text for _, text in blocks if text.startswith("first stage that differs"))
    (tmp_path / "my_module.py").write_text(source)
    sys.modules.pop("my_module", None)
    command = re.search(r"`gqa (trace numpy my_module:attention [^`]*)`", guide)[1]
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    said = re.sub(r"at most [\d.e-]+ allowed", "at most ... allowed", result.output)
    assert said.endswith(re.sub(r"at most [\d.e-]+ allowed", "at most ... allowed", shown))

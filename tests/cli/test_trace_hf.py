"""`gqa trace --hf`: the stages inside a transformers model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.checkpoints import ok, run

pytestmark = pytest.mark.no_shape_checks
pytest.importorskip("transformers")


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_each_layer_agrees_with_eager(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(model)
    assert "AGREE" in ok("trace", "--hf", folder, "--json", tmp_path / "found.json").output
    found = json.loads((tmp_path / "found.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert len(found["layers"]) == config["num_hidden_layers"]
    for layer in found["layers"]:
        assert layer["same"]
        assert 0 <= layer["weights"] < 1e-5
        N, K, T = config["num_attention_heads"], config["num_key_value_heads"], layer["stages"]["query"][2]
        assert layer["stages"]["scores"] == layer["stages"]["weights"] == [1, N, T, T]
        assert layer["stages"]["key"][1] == K


def test_every_stage_of_one_layer(llama: Path) -> None:
    shown = ok("trace", "--hf", llama, "--layer", "1").output
    for stage in ("query", "key", "value", "scores", "masked", "weights", "logsumexp", "context"):
        assert f" {stage} " in shown


def test_a_difference_is_named_by_its_layer(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gqa_torch.integrations import transformers as integration

    ours = integration.attention

    def wrong_from_layer_1(module: Any, query: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        return ours(module, query * (1.0 + 0.1 * (module.layer_idx >= 1)), *arguments, **settings)

    monkeypatch.setattr(integration, "attention", wrong_from_layer_1)
    result = run("trace", "--hf", str(llama))
    assert result.exit_code == 1
    assert "DIFFER  first at layer 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "trace: expected A and B, such as"),
        (("numpy", "torch", "--layer", "1"), "--layer: applies with --hf MODEL alone"),
        (("--hf", "{llama}", "--layer", "9"), "--layer: expected 0 to 1, got 9"),
        (("numpy", "--hf", "{llama}"), "A: does not apply to a transformers model"),
        (("--hf", "{llama}", "--text", "a word"), "has no tokenizer that transformers can read"),
        (("--hf", "/no/such/folder"), "--hf: transformers cannot read /no/such/folder"),
    ],
)
def test_bad_input(llama: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = run("trace", *(argument.format(llama=llama) for argument in arguments))
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())

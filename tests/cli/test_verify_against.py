"""`gqa verify --against`: a checkpoint in our code beside transformers', and beside a function of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.trace import foreign
from tests.cli.checkpoints import edited, ok, refused, run

pytestmark = pytest.mark.no_shape_checks
pytest.importorskip("transformers")


def interleaved(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE on neighbouring pairs, as Meta's files have it."""
    from transformers.models.llama import modeling_llama as modeling

    right = modeling.apply_rotary_pos_emb

    def wrong(q: Any, k: Any, cos: Any, sin: Any, **more: Any) -> Any:
        def paired(x: Any) -> Any:
            return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

        return right(paired(q), paired(k), cos, sin, **more)

    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", wrong)


def scaled(module: str, factor: float = 1.01) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def plant(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model.get_submodule(module).register_forward_hook(lambda _m, _a, result: result * factor)

    return plant


def changed(module: str, name: str, value: Any) -> Callable[[Any, pytest.MonkeyPatch], None]:
    return lambda model, monkeypatch: setattr(model.get_submodule(module), name, value)


# What is wrong in transformers' model -> the place, and the stage inside of a block.
PLANTED: dict[str, tuple[str, Callable[[Any, pytest.MonkeyPatch], None], str, str | None]] = {
    "eps of a norm": ("llama", changed("model.layers.1.input_layernorm", "variance_epsilon", 1e-2),
                      "block 1", "attention_norm"),
    "RoPE on neighbours": ("llama", interleaved, "block 0", "attention q_rope"),
    "a projection": ("llama", scaled("model.layers.1.self_attn.v_proj"), "block 1", "attention v_proj"),
    "scale": ("llama", changed("model.layers.1.self_attn", "scaling", 0.3), "block 1", "attention weights"),
    "the output": ("llama", scaled("model.layers.0.self_attn.o_proj"), "block 0", "attention output"),
    "feed-forward": ("llama", scaled("model.layers.1.mlp"), "block 1", "feed_forward"),
    "a QK-norm": ("gemma3", scaled("model.layers.2.self_attn.k_norm"), "block 2", "attention k_norm"),
    "the norm after": ("gemma3", scaled("model.layers.1.post_feedforward_layernorm"),
                       "block 1", "feed_forward_post_norm"),
    "the embedding": ("llama", scaled("model.embed_tokens"), "embedding", None),
    "the head": ("llama", scaled("lm_head"), "logits", None),
}  # fmt: skip


def test_what_is_said_of_logits() -> None:
    """Two tokens of six: the one differs by a known KL and in its best token, the other not at all."""
    p = np.array([0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
    q = np.array([0.1, 0.5, 0.3, 0.02, 0.03, 0.05])
    found = foreign.compare_logits(np.log([[q, p]]) + 3, np.log([[p, p]]))
    kl = float((p * np.log(p / q)).sum())
    assert found.largest_kl == pytest.approx(kl)
    assert found.mean_kl == pytest.approx(kl / 2)
    assert found.top_1 == 0.5
    assert found.top_5 == pytest.approx(0.9)  # 4 of 5, and 5 of 5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_equal(model: str, dtype: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    backend = "numpy" if model == "llama" else "torch"
    found = json.loads(
        ok("verify", folder, "--against", "transformers", "--dtype", dtype, "--backend", backend, "--json", "-").stdout
    )
    assert found["equal"]
    assert found["first_difference"] is None
    blocks = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    assert [row["place"] for row in found["places"]] == ["embedding", *(f"block {i}" for i in range(blocks)), "logits"]
    assert all(row["error"] < 2e-6 and row["cosine"] > 1 - 1e-9 for row in found["places"])
    assert found["logits"]["top_1"] == found["logits"]["top_5"] == 1
    assert found["logits"]["largest_kl"] < 1e-9


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_difference_is_named(case: str, request, monkeypatch: pytest.MonkeyPatch) -> None:
    family, plant, place, stage = PLANTED[case]
    load = foreign.transformers_model

    def wrong(*arguments: Any) -> Any:
        model = load(*arguments)
        plant(model, monkeypatch)
        return model

    monkeypatch.setattr(foreign, "transformers_model", wrong)
    result = run("verify", request.getfixturevalue(family), "--against", "transformers", "--json", "-")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert not found["equal"]
    assert found["first_difference"] == {"place": place, "stage": stage}


def test_the_screen_fits_80_columns_and_names_the_difference(llama: Path, tmp_path: Path, monkeypatch) -> None:
    load = foreign.transformers_model

    def wrong(*arguments: Any) -> Any:
        model = load(*arguments)
        scaled("model.layers.1.mlp")(model, monkeypatch)
        return model

    monkeypatch.setattr(foreign, "transformers_model", wrong)
    monkeypatch.chdir(llama.parent)
    shown = run("verify", "model", "--against", "transformers").stdout
    assert shown.startswith("DIFFERS  first difference: block 1, feed_forward, ")
    assert max(map(len, shown.splitlines())) <= 80


FUNCTIONS = """
import numpy as np
import torch
import transformers

model = transformers.LlamaForCausalLM.from_pretrained({folder!r}, dtype=torch.float64).eval()


def states(tokens):
    found = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _a, result: found.append(result))
    with torch.no_grad():
        result = model(torch.from_numpy(tokens), output_hidden_states=True)
    return result.logits, [result.hidden_states[0], *found[: len(model.model.layers)]]


def logits(tokens):
    return states(tokens)[0].numpy()


def wrong(tokens):
    logits, found = states(tokens)
    return dict(logits=logits, hidden_states=[found[0], found[1], found[2] * 1.01])


def too_few(tokens):
    logits, found = states(tokens)
    return logits, found[1:]


def flat(tokens):
    return np.zeros(3)


def failing(tokens):
    raise KeyError("q_proj")


text = "no function"
"""


def test_a_function_of_the_user(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_code.py").write_text(FUNCTIONS.format(folder=str(llama)))
    monkeypatch.chdir(tmp_path)
    shown = ok("verify", llama, "--against", "their_code:logits").stdout
    assert "EQUAL  the logits at most " in shown
    found = json.loads(ok("verify", llama, "--against", "their_code:states", "--json", "-").stdout)
    assert len(found["places"]) == 4
    result = run("verify", llama, "--against", "their_code:wrong", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first_difference"] == {"place": "block 1", "stage": None}
    for name, sentence in {
        "too_few": "expected 3 hidden states, after the embedding and after each block, got 2",
        "flat": "expected logits (B, T, V)",
        "failing": "the function raised KeyError: 'q_proj'",
        "text": "expected a function of tokens (B, T), got their_code:text, a str",
        "nothing": "their_code:nothing cannot be imported",
    }.items():
        refused(run("verify", llama, "--against", f"their_code:{name}"), tmp_path / "none", sentence)


def with_tokenizer(source: Path, folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(41)}
    library = Tokenizer(models.WordLevel(words, unk_token="w0"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    edited(source, folder)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def test_both_read_the_text(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = with_tokenizer(llama, tmp_path / "model"), []
    ours = foreign.our_pass

    def watched(path: Path, tokens: np.ndarray, *more: Any) -> Any:
        seen.append(tokens)
        return ours(path, tokens, *more)

    monkeypatch.setattr(foreign, "our_pass", watched)
    (tmp_path / "text.txt").write_text("w3 w5 w7 what w11\n" * 30)
    found = json.loads(
        ok("verify", folder, "--against", "transformers", "--text", tmp_path / "text.txt", "--json", "-").stdout
    )
    assert seen[0][0, :7].tolist() == [3, 5, 7, 0, 11, 3, 5]
    assert found["tokens"] == 64
    assert found["notes"] == ["of the text's 150 tokens the first 64 are read"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--against", "transfomers"), "did you mean transformers?"),
        (("{llama}", "--against", "transformers"), "--against: expected A alone, got B"),
        (("--against", "transformers", "--exact"), "--exact: compares stored weights"),
        (("{llama}", "--text", "x.txt"), "--text: applies with --against alone"),
        (("--against", "transformers", "--text", "/no/such/file"), "/no/such/file: no such file or directory"),
        (("--against", "transformers", "--text", "{llama}/config.json"), "tokenizer"),
        (("--against", "transformers", "--backend", "numpy", "--backend", "jax"), "--backend: expected one"),
        ((), "verify: expected A and B"),
    ],
)
def test_bad_input(llama: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    given = (argument.format(llama=llama) for argument in arguments)
    refused(run("verify", llama, *given), tmp_path / "none", sentence)


def test_the_cosine_is_the_least_of_any_token() -> None:
    ours = np.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    theirs = np.array([[[3.0, 0.0], [0.6, 0.8], [0.0, 0.0]]])
    assert foreign.compare("logits", ours[:, :2], theirs[:, :2], "float64").cosine == pytest.approx(0.6)
    assert foreign.compare("logits", ours, ours, "float64").error == 0

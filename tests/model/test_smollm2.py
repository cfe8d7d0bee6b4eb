"""SmolLM2-135M, a real model from a real file: one text from every backend and from transformers, and one perplexity.

transformers reads the file with its own reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from conformance.cases.real_data import king_james, smollm2_file
from conformance.checks import smollm2 as real
from gqa_spec import ModelConfig
from gqa_weights.checkpoint import open_checkpoint
from gqa_weights.families import read_model
from gqa_weights.tokenizer import Tokenizer, read_tokenizer

pytestmark = [
    pytest.mark.no_shape_checks,
    pytest.mark.skipif(bool(real.missing_parts()), reason=real.missing_parts() or "all is installed"),
]
BACKENDS = ("numpy", "torch", "jax")
PROMPT, NEW, TOKENS = "In the beginning", 64, 1024


@dataclass(frozen=True)
class File:
    config: ModelConfig
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    prompt: list[int]
    text: np.ndarray


@pytest.fixture(scope="module")
def file() -> File:
    """Read once for all backends: parsing the file takes seconds."""
    checkpoint = open_checkpoint(smollm2_file())
    read, tokenizer = read_model(checkpoint), read_tokenizer(checkpoint)
    weights = {name: read.weights[name] for name in read.weights}
    text = np.array([tokenizer.encode(king_james().book(1)[:8000])[:TOKENS]])
    return File(read.config, weights, tokenizer, tokenizer.encode(PROMPT), text)


@pytest.fixture(scope="module")
def written(file: File) -> dict[str, tuple[list[int], float]]:
    """backend -> NEW greedy tokens after the prompt, and the perplexity of the text."""
    found = {}
    for backend in BACKENDS:
        model = new(backend, file)
        [tokens] = model.generate([file.prompt], NEW)
        found[backend] = tokens, perplexity(logits(backend, model, file.text), file.text[0])
    return found


def new(backend: str, file: File) -> Any:
    if backend == "numpy":
        from gqa_numpy import Transformer

        return Transformer(file.config, dtype=np.float32).load_weights(file.weights).eval()
    if backend == "torch":
        from gqa_torch import Transformer

        return Transformer(file.config).load_weights(file.weights).eval()
    from flax import nnx

    from gqa_jax import Transformer

    return nnx.eval_shape(lambda: Transformer(file.config, rngs=nnx.Rngs(0))).load_weights(file.weights).eval()


def logits(backend: str, model: Any, tokens: np.ndarray) -> np.ndarray:
    if backend == "numpy":
        return model(tokens)[0]
    if backend == "torch":
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(tokens))[0].numpy()
    import jax.numpy as jnp

    return np.asarray(model(jnp.asarray(tokens))[0])


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean surprise at each token after the first, in float64."""
    surprises = []
    for row, token in zip(logits[:-1], tokens[1:], strict=True):
        wide = row.astype(np.float64)
        peak = wide.max()
        surprises.append(peak + np.log(np.exp(wide - peak).sum()) - wide[token])
    return float(np.exp(np.mean(surprises)))


def test_the_backends_write_the_same_text(file: File, written: dict[str, tuple[list[int], float]]) -> None:
    texts = {backend: file.tokenizer.decode(tokens) for backend, (tokens, _) in written.items()}
    assert all(len(tokens) == NEW for tokens, _ in written.values())
    assert texts["torch"] == texts["jax"] == texts["numpy"]


def test_the_backends_are_equally_surprised(written: dict[str, tuple[list[int], float]]) -> None:
    surprise = {backend: found for backend, (_, found) in written.items()}
    assert surprise["torch"] == pytest.approx(surprise["numpy"], rel=5e-5)
    assert surprise["jax"] == pytest.approx(surprise["numpy"], rel=5e-5)
    assert 1 < surprise["numpy"] < 100  # a model that reads English; a wrong one has thousands


def test_transformers_reads_and_writes_the_same(file: File, written: dict[str, tuple[list[int], float]]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    theirs, tokenizer = real._llama()
    assert tokenizer.encode(king_james().book(1)[:8000]).ids[:TOKENS] == file.text[0].tolist()
    with torch.device("meta"):
        causal = LlamaForCausalLM(theirs.config)
    causal.model = theirs
    causal.lm_head.weight = theirs.embed_tokens.weight
    state = theirs.state_dict()
    for ours, name in ours_to_theirs(file.config).items():
        assert (file.weights[ours] == state.pop(name).numpy()).all(), ours
    assert not state
    prompt = torch.tensor([file.prompt])
    tokens = causal.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert tokens[0, len(file.prompt) :].tolist() == written["numpy"][0]


def ours_to_theirs(config: ModelConfig) -> dict[str, str]:
    names = {"embed.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}.", f"layers.{i}."
        names |= {f"{ours}attention.{x}_proj.weight": f"{theirs}self_attn.{x}_proj.weight" for x in "qkvo"}
        names |= {f"{ours}feed_forward.{x}.weight": f"{theirs}mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        names[f"{ours}attention_norm.weight"] = f"{theirs}input_layernorm.weight"
        names[f"{ours}feed_forward_norm.weight"] = f"{theirs}post_attention_layernorm.weight"
    return names


def test_text_survives_the_tokenizer(file: File) -> None:
    text = "Zwölf 1234 naïve 東京 🙂\n\tif x == 1:"
    assert file.tokenizer.decode(file.tokenizer.encode(text)) == text
    certain = file.tokenizer.stream()
    assert "".join(certain(token) for token in file.tokenizer.encode(text)) == text
    assert file.tokenizer.encode("<|im_end|>") == list(file.tokenizer.stop_tokens)

"""Files of one model that differ in their names, in a repeated head, in dtypes: read as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conformance.cases.compare import error_of
from conformance.trace.models import verify
from gqa_numpy import Transformer
from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from gqa_weights.families import Model, read_attention, read_model
from gqa_weights.families.converted import widest
from gqa_weights.port import plan, write
from tests.weights.small_models import PROMPTS, saved, stand_in

pytestmark = pytest.mark.no_shape_checks
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def opened(case: str, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings and the tensors of a small model's folder."""
    checkpoint = open_checkpoint(saved(case, folder)[1])
    return dict(checkpoint.settings), {name: checkpoint[name] for name in checkpoint}


def written(path: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    listed = [(name, TensorInfo(x.shape, x.dtype.name), lambda x=x: x) for name, x in tensors.items()]
    save_checkpoint(path, listed, settings=settings)
    return path


def logits(path: Path) -> np.ndarray:
    """What transformers computes from a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(PROMPTS)).logits.numpy()


# --- tied heads ------------------------------------------------------------------------------------------------------


def test_a_tied_head_may_be_repeated(folder: Path) -> None:
    settings, tensors = opened("llama plain", folder)
    model = read_model(stand_in(settings, tensors | {HEAD: tensors[EMBED]}))
    assert "head.weight" not in model.weights
    assert model.unread == {HEAD: f"repeats {EMBED} bit for bit"}


def test_a_head_that_differs_in_one_bit_is_used(folder: Path, tmp_path: Path) -> None:
    """tie_word_embeddings is true, but transformers keeps the head that the file holds."""
    settings, tensors = opened("llama plain", folder)
    head = tensors[EMBED].copy()
    head[-1, -1] = np.nextafter(head[-1, -1], np.float32(9))
    model = read_model(stand_in(settings, tensors | {HEAD: head}))
    assert not model.config.tied
    assert model.weights["head.weight"].tobytes() == head.tobytes()
    assert model.unread == {}
    path = written(tmp_path / "own head", settings, tensors | {HEAD: head[:, ::-1].copy()})
    expected = logits(path)
    assert error_of(Transformer.from_checkpoint(path)(PROMPTS), expected) <= 1e-5
    write(plan(path, "llama"), tmp_path / "ported")
    assert error_of(logits(tmp_path / "ported"), expected) <= 1e-6


def test_a_head_of_zeros_with_another_sign_is_no_repeat(folder: Path) -> None:
    settings, tensors = opened("llama plain", folder)
    embed = np.zeros_like(tensors[EMBED])
    assert not read_model(stand_in(settings, tensors | {EMBED: embed, HEAD: -embed})).config.tied
    half = embed.astype(np.float16)
    assert not read_model(stand_in(settings, tensors | {EMBED: embed, HEAD: half})).config.tied


def test_verify_names_what_it_did_not_compare(folder: Path) -> None:
    settings, tensors = opened("llama plain", folder)
    inv_freq = "model.layers.1.self_attn.rotary_emb.inv_freq"
    a = read_model(stand_in(settings, tensors | {HEAD: tensors[EMBED]}))
    b = read_model(stand_in(settings, tensors | {inv_freq: np.zeros(2)}))
    (verdict,) = [verdict for verdict in verify(a, b) if verdict.place == "tensors not compared"]
    assert verdict.same
    assert verdict.reason == f"A: {HEAD} repeats {EMBED} bit for bit; B: {inv_freq} holds no weights"
    own = read_model(stand_in(settings, tensors | {HEAD: -tensors[EMBED]}))
    differing = [verdict.place for verdict in verify(a, own) if not verdict.same]
    assert differing == ["head.weight"]


# --- names -----------------------------------------------------------------------------------------------------------

PREFIXES = {
    "saved without the head": lambda name: name.removeprefix("model."),
    "part of a larger model": lambda name: f"language_model.{name}",
    "part of a larger model, transformers 5": lambda name: name.replace("model.", "model.language_model."),
    "compiled": lambda name: f"_orig_mod.{name}",
    "distributed": lambda name: f"module.{name}",
    "distributed and compiled, without model.": lambda name: f"module._orig_mod.{name.removeprefix('model.')}",
    "a trainer's own": lambda name: f"policy.net.{name}",
}


@pytest.mark.parametrize("case", ["llama", "llama plain", "phi3", "gemma3"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_common_prefix_is_found(prefix: str, case: str, folder: Path) -> None:
    settings, tensors = opened(case, folder)
    expected = read_model(stand_in(settings, tensors))
    renamed = stand_in(settings, {PREFIXES[prefix](name): x for name, x in tensors.items()})
    same_model(read_model(renamed), expected)
    layers = read_attention(renamed)
    assert all(layers.weights[name].tobytes() == expected.weights[name].tobytes() for name in layers.weights)


def same_model(got: Model, expected: Model) -> None:
    assert got.config == expected.config
    assert list(got.weights) == list(expected.weights)
    for name in expected.weights:
        assert got.weights[name].tobytes() == expected.weights[name].tobytes(), name


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_tied_pair_may_have_either_name(prefix: str, folder: Path) -> None:
    settings, tensors = opened("llama plain", folder)
    expected = read_model(stand_in(settings, tensors))
    tensors = {HEAD if name == EMBED else name: x for name, x in tensors.items()}
    same_model(read_model(stand_in(settings, {PREFIXES[prefix](name): x for name, x in tensors.items()})), expected)


def test_where_nothing_fits_both_sides_are_shown(folder: Path) -> None:
    settings, tensors = opened("llama plain", folder)
    other = {name.replace("layers", "h").replace("model", "transformer"): x for name, x in tensors.items()}
    sentence = (
        r"tensors: missing model.embed_tokens.weight, model.layers.0.\S+, .* and \d+ more; "
        r"unexpected transformer.embed_tokens.weight, transformer.h.0.\S+, .* and \d+ more$"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read_model(stand_in(settings, other))


# --- dtypes ----------------------------------------------------------------------------------------------------------


def test_the_widest_dtype_rounds_no_weight(folder: Path, tmp_path: Path) -> None:
    """bfloat16 with float32 norms: the norms keep every bit, in every backend and in a port."""
    from tests.model.test_from_checkpoint import transformer

    settings, tensors = opened("llama", folder)
    mixed = {n: x if n.endswith("norm.weight") else x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()}
    path = written(tmp_path / "mixed", settings, mixed)
    assert read_model(open_checkpoint(path)).dtype == "float32"
    for backend in ("numpy", "torch", "jax"):
        weights = transformer(backend, path, None).export_weights()
        assert {str(x.dtype) for x in weights.values()} == {"float32"}
        np.testing.assert_array_equal(weights["norm.weight"], tensors["model.norm.weight"])
        embed = tensors[EMBED].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(weights["embed.weight"], embed)
    write(plan(path, "llama"), tmp_path / "ported")
    ported = open_checkpoint(tmp_path / "ported")
    assert {name: ported[name].tobytes() for name in ported} == {name: x.tobytes() for name, x in mixed.items()}
    assert json.loads((tmp_path / "ported" / "gqa_manifest.json").read_text())["dtype"] == "bfloat16, float32"


def test_dtypes_of_which_none_holds_the_other() -> None:
    assert widest(["bfloat16", "float16"]) == "float32"
    assert widest(["float16", "float16"]) == "float16"
    assert widest(["float64", "bfloat16"]) == "float64"

"""`gqa port`, end to end on files that transformers wrote."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from gqa_weights.checkpoint import open_checkpoint
from gqa_weights.port import TARGETS, open_model
from tests.cli.checkpoints import K_PROJ, LLAMA, edited, ok, refused, run, tensors
from tests.helpers import assert_same_bits, half_rows

pytestmark = pytest.mark.no_shape_checks
transformers = pytest.importorskip("transformers")


def test_llama_to_meta_and_back(llama, tmp_path):
    meta, back = tmp_path / "meta", tmp_path / "back"
    ok("port", llama, meta, "--to", "meta")
    stored, theirs = tensors(meta), tensors(llama)
    assert stored.keys() >= {"tok_embeddings.weight", "layers.1.attention.wk.weight", "output.weight"}
    for ours, other, heads in (("wq", "q_proj", 6), ("wk", "k_proj", 2)):
        rows = stored[f"layers.1.attention.{ours}.weight"]
        half = theirs[f"model.layers.1.self_attn.{other}.weight"]
        assert np.array_equal(rows[half_rows(len(rows), heads)], half)
        assert not np.array_equal(rows, half)
    assert "EQUAL" in ok("verify", llama, meta).output
    assert json.loads(ok("inspect", meta, "--json", "-").stdout)["rope"] == "theta 10,000, rows paired interleaved"
    ok("port", meta, back, "--to", "huggingface")
    assert_same_bits(tensors(llama), tensors(back), in_order=False)
    model = transformers.LlamaForCausalLM.from_pretrained(back)
    assert {name: getattr(model.config, name) for name in LLAMA} == LLAMA


def test_gemma3_with_norms_and_windows_there_and_back(gemma3, tmp_path):
    ok("port", gemma3, tmp_path / "canonical", "--to", "canonical")
    ok("port", tmp_path / "canonical", tmp_path / "back", "--to", "huggingface")
    assert_same_bits(tensors(gemma3), tensors(tmp_path / "back"), in_order=False)
    assert json.loads(ok("verify", gemma3, tmp_path / "back", "--json", "-").stdout)["equal"]
    stated = json.loads((tmp_path / "canonical" / "gqa_manifest.json").read_text())
    windows = {layer["window"]: layer["layers"] for layer in stated["attention"]}
    assert windows == {5: [0, 2], None: [1]}
    for layer in stated["attention"]:
        assert layer["scale"] == pytest.approx(13**-0.5)
        assert layer["qk_norm"] == "RMS over each head, times 1 + w"
        assert (layer["num_heads"], layer["num_kv_heads"], layer["head_dim"]) == (6, 2, 10)
        assert (layer["pairing"], layer["head_order"]) == ("half", "query head n reads KV head n // G")
    assert stated["dtype"] == "float32"
    assert stated["source"] == {"path": str(gemma3), "format": "safetensors", "layout": "gemma3_text"}


ATTENTION_LAYOUTS = ("flax", "keras", "litgpt", "megatron", "torchtune", "x-transformers")


@pytest.mark.parametrize("layout", ATTENTION_LAYOUTS)
def test_layouts_of_attention_alone_are_read_back(llama, tmp_path, layout):
    """The attention has the layout's names, the rest canonical ones, and the manifest the settings."""
    assert layout in TARGETS
    ok("port", llama, tmp_path / "there", "--to", layout)
    ok("port", tmp_path / "there", tmp_path / "back", "--to", "huggingface")
    assert_same_bits(tensors(llama), tensors(tmp_path / "back"), in_order=False)
    a, b = open_model(llama), open_model(tmp_path / "there")
    assert a.config == b.config
    assert all(a.weights[name].tobytes() == b.weights[name].tobytes() for name in a.weights)


def test_flax_kernels_are_input_first(llama, tmp_path):
    ok("port", llama, tmp_path / "flax", "--to", "flax")
    kernel = tensors(tmp_path / "flax")["blocks.1.attention.key.kernel"]
    assert kernel.shape == (72, 2, 12)
    expected = tensors(llama)[K_PROJ]
    assert all(kernel[d, k, h] == expected[12 * k + h, d] for d in (0, 71) for k in (0, 1) for h in (0, 5, 11))


def test_a_fused_layout_is_stated(llama, tmp_path):
    ok("port", llama, tmp_path / "fused", "--to", "litgpt")
    (layers,) = json.loads((tmp_path / "fused" / "gqa_manifest.json").read_text())["attention"]
    assert layers["fused"] == {"qkv.weight": "q_proj.weight | k_proj.weight | v_proj.weight"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_cast_is_stated_and_verified(llama, tmp_path, dtype):
    ok("port", llama, tmp_path / "cast", "--to", "huggingface", "--dtype", dtype)
    checkpoint = open_checkpoint(tmp_path / "cast")
    assert {checkpoint.info(name).dtype for name in checkpoint} == {dtype}
    expected = tensors(llama)[K_PROJ].astype(checkpoint[K_PROJ].dtype)
    assert checkpoint[K_PROJ].tobytes() == expected.tobytes()
    ok("verify", llama, tmp_path / "cast")
    assert json.loads((tmp_path / "cast" / "gqa_manifest.json").read_text())["dtype"] == dtype


def test_a_cast_that_overflows_is_refused(llama, tmp_path):
    large = edited(llama, tmp_path / "large", **{K_PROJ: tensors(llama)[K_PROJ] * np.float32(1e6)})
    refused(
        run("port", large, tmp_path / "dest", "--to", "huggingface", "--dtype", "float16"), tmp_path / "dest", K_PROJ
    )


def test_other_files_and_formats(llama, tmp_path):
    """Sharded folders, .npz, single files and PyTorch files with their settings beside them."""
    import torch

    sharded = tmp_path / "sharded"
    transformers.LlamaForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    ok("port", sharded, tmp_path / "whole", "--to", "huggingface")
    assert_same_bits(tensors(llama), tensors(tmp_path / "whole"), in_order=False)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save({n: torch.from_numpy(x) for n, x in tensors(llama).items()}, pickled / "pytorch_model.bin")
    shutil.copy(llama / "config.json", pickled)
    for name in ("one.npz", "one.safetensors", "tree.orbax"):
        ok("port", pickled, tmp_path / name, "--to", "canonical")
        ok("port", tmp_path / name, tmp_path / f"{name} back", "--to", "huggingface")
        assert_same_bits(tensors(llama), tensors(tmp_path / f"{name} back"), in_order=False)
    assert open_checkpoint(tmp_path / "tree.orbax").format == "orbax"


def test_a_meta_folder_becomes_a_hugging_face_folder(llama, tmp_path):
    """params.json as Meta writes it: nothing about lengths, and a vocabulary of -1."""
    import torch

    ok("port", llama, tmp_path / "ours", "--to", "meta")
    assert json.loads((tmp_path / "ours" / "params.json").read_text())["n_kv_heads"] == 2
    assert not (tmp_path / "ours" / "config.json").exists()
    assert "EQUAL" in ok("verify", llama, tmp_path / "ours", "--exact").output
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    stored = {name: torch.from_numpy(x) for name, x in tensors(tmp_path / "ours").items()}
    torch.save(stored, theirs / "consolidated.00.pth")
    params = {"dim": 72, "multiple_of": 256, "n_heads": 6, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-5}
    (theirs / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    assert "EQUAL" in ok("verify", llama, theirs).output
    ok("port", theirs, tmp_path / "back", "--to", "huggingface")
    assert_same_bits(tensors(llama), tensors(tmp_path / "back"), in_order=False)
    assert "max_position_embeddings" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_nothing_is_overwritten_without_force(llama, tmp_path):
    dest = tmp_path / "dest"
    ok("port", llama, dest, "--to", "canonical")
    (dest / "tokenizer.json").write_text("mine")
    before = {path: path.read_bytes() for path in dest.rglob("*")}
    result = run("port", llama, dest, "--to", "meta")
    assert result.exit_code == 2
    assert "force" in result.stderr
    assert {path: path.read_bytes() for path in dest.rglob("*")} == before
    ok("port", llama, dest, "--to", "meta", "--force")
    assert (dest / "tokenizer.json").read_text() == "mine"
    assert "layers.1.attention.wk.weight" in tensors(dest)

"""`gqa inspect`, `port`, `pool`, `expand` and `verify`, end to end on files that transformers wrote."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from gqa import app
from gqa_weights.checkpoint import open_checkpoint
from gqa_weights.port import TARGETS, open_model

pytestmark = pytest.mark.no_shape_checks
transformers = pytest.importorskip("transformers")

# N = 6, K = 2, G = 3; Meta's files need D = N * H. K * H is a multiple of 2 * N: rows permuted wrongly still fit.
LLAMA: dict[str, Any] = {
    "vocab_size": 41, "hidden_size": 72, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    **LLAMA, "hidden_size": 30, "num_hidden_layers": 3, "head_dim": 10, "query_pre_attn_scalar": 13,
    "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
Q_NORM = "model.layers.2.self_attn.q_norm.weight"


def saved(folder: Path, model: Any) -> Path:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    return saved(tmp_path_factory.mktemp("llama") / "model", model)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA3))
    return saved(tmp_path_factory.mktemp("gemma3") / "model", model)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fine(*arguments: Any) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in load_file(folder / "model.safetensors").items()}


def assert_same_bits(a: Path, b: Path) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape), name
        assert ours[name].tobytes() == theirs[name].tobytes(), name


def edited(source: Path, folder: Path, settings: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    """A copy of a folder with some of its settings or tensors replaced."""
    shutil.copytree(source, folder)
    if settings:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    if arrays:
        save_file(tensors(source) | arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- port ------------------------------------------------------------------------------------------------------------


def half_rows(count: int, heads: int) -> list[int]:
    """Interleaved rows in the order of half ones: pair d of a head is rows 2 d and 2 d + 1."""
    size = count // heads
    return [h * size + 2 * d + part for h in range(heads) for part in (0, 1) for d in range(size // 2)]


def test_llama_to_meta_and_back(llama, tmp_path):
    meta, back = tmp_path / "meta", tmp_path / "back"
    fine("port", llama, meta, "--to", "meta")
    stored, theirs = tensors(meta), tensors(llama)
    assert stored.keys() >= {"tok_embeddings.weight", "layers.1.attention.wk.weight", "output.weight"}
    for ours, other, heads in (("wq", "q_proj", 6), ("wk", "k_proj", 2)):
        rows = stored[f"layers.1.attention.{ours}.weight"]
        half = theirs[f"model.layers.1.self_attn.{other}.weight"]
        assert np.array_equal(rows[half_rows(len(rows), heads)], half)
        assert not np.array_equal(rows, half)
    assert "equal" in fine("verify", llama, meta).output
    assert json.loads(fine("inspect", meta, "--json").stdout)["rope"] == "theta 10,000, rows paired interleaved"
    fine("port", meta, back, "--to", "huggingface")
    assert_same_bits(llama, back)
    model = transformers.LlamaForCausalLM.from_pretrained(back)
    assert {name: getattr(model.config, name) for name in LLAMA} == LLAMA


def test_gemma3_with_norms_and_windows_there_and_back(gemma3, tmp_path):
    fine("port", gemma3, tmp_path / "canonical", "--to", "canonical")
    fine("port", tmp_path / "canonical", tmp_path / "back", "--to", "huggingface")
    assert_same_bits(gemma3, tmp_path / "back")
    assert json.loads(fine("verify", gemma3, tmp_path / "back", "--json").stdout)["equal"]
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
    fine("port", llama, tmp_path / "there", "--to", layout)
    fine("port", tmp_path / "there", tmp_path / "back", "--to", "huggingface")
    assert_same_bits(llama, tmp_path / "back")
    a, b = open_model(llama), open_model(tmp_path / "there")
    assert a.config == b.config
    assert all(a.weights[name].tobytes() == b.weights[name].tobytes() for name in a.weights)


def test_flax_kernels_are_input_first(llama, tmp_path):
    fine("port", llama, tmp_path / "flax", "--to", "flax")
    kernel = tensors(tmp_path / "flax")["blocks.1.attention.key.kernel"]
    assert kernel.shape == (72, 2, 12)
    expected = tensors(llama)[K_PROJ]
    assert all(kernel[d, k, h] == expected[12 * k + h, d] for d in (0, 71) for k in (0, 1) for h in (0, 5, 11))


def test_a_fused_layout_is_stated(llama, tmp_path):
    fine("port", llama, tmp_path / "fused", "--to", "litgpt")
    (layers,) = json.loads((tmp_path / "fused" / "gqa_manifest.json").read_text())["attention"]
    assert layers["fused"] == {"qkv.weight": "q_proj.weight | k_proj.weight | v_proj.weight"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_cast_is_said_and_verified(llama, tmp_path, dtype):
    fine("port", llama, tmp_path / "cast", "--to", "huggingface", "--dtype", dtype)
    checkpoint = open_checkpoint(tmp_path / "cast")
    assert {checkpoint.info(name).dtype for name in checkpoint} == {dtype}
    expected = tensors(llama)[K_PROJ].astype(checkpoint[K_PROJ].dtype)
    assert checkpoint[K_PROJ].tobytes() == expected.tobytes()
    fine("verify", llama, tmp_path / "cast")
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
    fine("port", sharded, tmp_path / "whole", "--to", "huggingface")
    assert_same_bits(llama, tmp_path / "whole")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save({n: torch.from_numpy(x) for n, x in tensors(llama).items()}, pickled / "pytorch_model.bin")
    shutil.copy(llama / "config.json", pickled)
    for name in ("one.npz", "one.safetensors", "tree.orbax"):
        fine("port", pickled, tmp_path / name, "--to", "canonical")
        fine("port", tmp_path / name, tmp_path / f"{name} back", "--to", "huggingface")
        assert_same_bits(llama, tmp_path / f"{name} back")
    assert open_checkpoint(tmp_path / "tree.orbax").format == "orbax"


def test_a_folder_of_metas_own_becomes_one_of_hugging_face(llama, tmp_path):
    """params.json as Meta writes it: nothing about lengths, and a vocabulary of -1."""
    import torch

    fine("port", llama, tmp_path / "ours", "--to", "meta")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    stored = {name: torch.from_numpy(x) for name, x in tensors(tmp_path / "ours").items()}
    torch.save(stored, theirs / "consolidated.00.pth")
    params = {"dim": 72, "multiple_of": 256, "n_heads": 6, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-5}
    (theirs / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    assert "equal" in fine("verify", llama, theirs).output
    fine("port", theirs, tmp_path / "back", "--to", "huggingface")
    assert_same_bits(llama, tmp_path / "back")
    assert "max_position_embeddings" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_nothing_is_overwritten_without_force(llama, tmp_path):
    dest = tmp_path / "dest"
    fine("port", llama, dest, "--to", "canonical")
    (dest / "tokenizer.json").write_text("mine")
    before = {path: path.read_bytes() for path in dest.rglob("*")}
    result = run("port", llama, dest, "--to", "meta")
    assert result.exit_code == 2
    assert "force" in result.stderr
    assert {path: path.read_bytes() for path in dest.rglob("*")} == before
    fine("port", llama, dest, "--to", "meta", "--force")
    assert (dest / "tokenizer.json").read_text() == "mine"
    assert "layers.1.attention.wk.weight" in tensors(dest)


# --- pool and expand -------------------------------------------------------------------------------------------------


def test_expand_then_pool_is_the_identity(llama, tmp_path):
    fine("expand", llama, tmp_path / "mha")
    assert tensors(tmp_path / "mha")[K_PROJ].shape == (72, 72)
    assert json.loads((tmp_path / "mha" / "config.json").read_text())["num_key_value_heads"] == 6
    found = json.loads(fine("inspect", tmp_path / "mha", "--json").stdout)
    assert (found["query_heads"], found["kv_heads"], found["query_heads_per_kv_head"]) == (6, 6, 1)
    fine("pool", tmp_path / "mha", tmp_path / "back", "--num-kv-heads", 2)
    assert_same_bits(llama, tmp_path / "back")
    stated = json.loads((tmp_path / "back" / "gqa_manifest.json").read_text())
    assert stated["source"]["changed"] == "KV heads pooled by mean"


def test_pool_takes_the_mean_of_neighbours_the_first_or_fresh_heads(llama, tmp_path):
    before = tensors(llama)[K_PROJ].astype(np.float64)
    for method in ("mean", "first"):
        fine("pool", llama, tmp_path / method, "--num-kv-heads", 1, "--method", method)
    assert np.allclose(tensors(tmp_path / "mean")[K_PROJ], (before[:12] + before[12:]) / 2, rtol=1e-6)
    assert np.array_equal(tensors(tmp_path / "first")[K_PROJ], before[:12].astype(np.float32))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        fine("pool", llama, tmp_path / name, "--num-kv-heads", 1, "--method", "random", "--seed", seed)
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert np.array_equal(a[K_PROJ], b[K_PROJ])
    assert not np.array_equal(a[K_PROJ], c[K_PROJ])
    other = a[K_PROJ.replace("layers.1", "layers.0")]
    assert abs(np.corrcoef(a[K_PROJ].ravel(), other.ravel())[0, 1]) < 0.5  # each layer has draws of its own
    assert np.array_equal(a[Q_PROJ], tensors(llama)[Q_PROJ])


def test_pooling_is_a_difference_that_verify_names(llama, tmp_path):
    fine("pool", llama, tmp_path / "pooled", "--num-kv-heads", 1)
    result = run("verify", llama, tmp_path / "pooled", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["equal"]
    assert (found["first_difference"]["place"], found["first_difference"]["stage"]) == ("layer 0 attention", "k_proj")
    assert "num_kv_heads 2 in A, 1 in B" in found["first_difference"]["reason"]


# --- verify ----------------------------------------------------------------------------------------------------------


def k_permuted_with_n(w: np.ndarray) -> np.ndarray:
    """As a converter does that takes N heads for K's: Meta's rows made half ones with 6 heads, not 2."""
    interleaved = np.empty_like(w)
    interleaved[half_rows(len(w), 2)] = w
    return interleaved[half_rows(len(w), 6)]


def tiled(w: np.ndarray) -> np.ndarray:
    return np.concatenate([w[12 * n : 12 * n + 12] for n in (0, 3, 1, 4, 2, 5)])


PLANTED: dict[str, tuple[str, str, dict[str, Any], Any, str, str]] = {
    "K permuted with N heads": ("llama", K_PROJ, {}, k_permuted_with_n, "layer 1 attention", "k_proj"),
    "query heads tiled": ("llama", Q_PROJ, {}, tiled, "layer 1 attention", "q_proj"),
    "norm stored as 1 + w": ("gemma3", Q_NORM, {}, lambda w: w + 1, "layer 2 attention", "q_norm"),
    "window off by one": ("gemma3", "", {"sliding_window": 6}, None, "layer 0 attention", "masked"),
    "scale": ("gemma3", "", {"query_pre_attn_scalar": 12}, None, "layer 0 attention", "scores"),
    "a feed-forward weight": (
        "llama", "model.layers.0.mlp.up_proj.weight", {}, lambda w: w * np.float32(1.01),
        "blocks.0.feed_forward.up.weight", "weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_bug_is_named(request, tmp_path, case):
    family, name, settings, change, place, stage = PLANTED[case]
    source = request.getfixturevalue(family)
    arrays = {name: np.ascontiguousarray(change(tensors(source)[name]))} if change else {}
    wrong = edited(source, tmp_path / "wrong", settings, **arrays)
    result = run("verify", source, wrong)
    assert result.exit_code == 1
    assert f"first difference: {place}, {stage}" in result.stdout
    # what is seen between two files is seen from any layout
    fine("port", source, tmp_path / "ported", "--to", "canonical")
    found = json.loads(run("verify", tmp_path / "ported", wrong, "--json").stdout)["first_difference"]
    assert (found["place"], found["stage"]) == (place, stage)


def test_backends_are_chosen(llama):
    assert json.loads(fine("verify", llama, llama, "--backends", "torch,numpy", "--json").stdout)["backends"] == [
        "torch",
        "numpy",
    ]
    for backends in ("numpy", "numpy,torch,jax", "numpy,mlx"):
        result = run("verify", llama, llama, "--backends", backends)
        assert result.exit_code == 2
        assert "--backends" in result.stderr


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_counts_what_transformers_counts(llama, gemma3):
    found = json.loads(fine("inspect", llama, "--json").stdout)
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes"] == 4 * found["parameters"]
    assert found["cache_bytes_per_token"] == 2 * (2 * 2 * 12 * 4)  # layers, keys and values, K, H, bytes
    assert (found["family"], found["layers"], found["embed_dim"], found["head_size"]) == ("llama", 2, 72, 12)
    assert (found["query_heads"], found["kv_heads"], found["query_heads_per_kv_head"]) == (6, 2, 3)
    assert found["dtype"] == f"float32 ({found['tensors']})"
    assert found["rope"] == "theta 10,000, rows paired half"
    both = json.loads(fine("inspect", gemma3, "--json").stdout)
    assert both["rope"] == "theta 10,000, rows paired half on 2 layers; theta 1,000,000, rows paired half on 1 layers"
    assert both["window"] == "5 on 2 layers; none on 1 layers"
    assert both["qk_norm"] == "rms_plus_one"
    table = fine("inspect", gemma3).stdout
    assert "gemma3_text" in table
    assert "cache bytes per token" in table


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(result: Any, dest: Path, *named: Any) -> None:
    """Exit code 2, one sentence that names what is wrong, nothing written."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert all(str(text) in lines[0] for text in named), lines[0]
    assert not dest.exists()
    assert not [path for path in dest.parent.iterdir() if path.name.startswith((".", dest.name))]


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    header, data = header_of(file.read_bytes())
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def replaced(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)


def reindexed(folder: Path, shard: str) -> None:
    """An index in place of the one file: every tensor is said to be in `shard`."""
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    places = dict.fromkeys(load_file(folder / "part.safetensors"), "part.safetensors") | {K_PROJ: shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def whole(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def overlap(header: dict[str, Any]) -> None:
    header[K_PROJ]["data_offsets"] = header[Q_PROJ]["data_offsets"]


def misshape(header: dict[str, Any]) -> None:
    header[K_PROJ]["shape"] = [72, 24]


def resettled(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def bombed(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({K_PROJ: Bomb()}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "truncated": (lambda f: replaced(f, whole(f)[:-100]), ("model.safetensors",)),
    "empty": (lambda f: replaced(f, b""), ("model.safetensors: the file is empty",)),
    "git-lfs's pointer": (
        lambda f: replaced(f, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("model.safetensors", "git lfs pull"),
    ),
    "corrupt": (lambda f: replaced(f, b"\xff" * 1000), ("model.safetensors",)),
    "lying header length": (
        lambda f: replaced(f, (2**62).to_bytes(8, "little") + whole(f)[8:]),
        ("model.safetensors",),
    ),
    "overlapping offsets": (lambda f: with_header(f, overlap), ("model.safetensors",)),
    "wrong shape": (lambda f: with_header(f, misshape), (K_PROJ, "(24, 72)", "(72, 24)")),
    "tensor missing": (lambda f: with_header(f, lambda h: h.pop(K_PROJ)), ("model",)),
    "missing shard": (lambda f: reindexed(f, "gone.safetensors"), ("gone.safetensors", K_PROJ)),
    "shard outside": (lambda f: reindexed(f, "../part.safetensors"), ("model.safetensors.index.json", K_PROJ)),
    "shard without it": (lambda f: (reindexed(f, "x.safetensors"), save_file({}, f / "x.safetensors")), (K_PROJ,)),
    "pickle": (bombed, ("pytorch_model.bin",)),
    "no settings": (lambda f: (f / "config.json").unlink(), ("no config.json",)),
    "settings no JSON": (lambda f: (f / "config.json").write_text("{"), ("config.json",)),
    "unknown family": (lambda f: resettled(f, model_type="mamba"), ("unknown family 'mamba'",)),
    "unknown setting": (lambda f: resettled(f, logit_scale=2.0), ("logit_scale",)),
    "unsupported setting": (lambda f: resettled(f, rope_scaling={"rope_type": "foo"}), ("'foo'",)),
    "config does not fit": (lambda f: resettled(f, num_key_value_heads=3), (K_PROJ, "(36, 72)", "(24, 72)")),
    "no such folder": (shutil.rmtree, ("source",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_sentence_and_nothing_written(llama, tmp_path, monkeypatch, case):
    spoil, named = BAD[case]
    source, dest = tmp_path / "source", tmp_path / "dest"
    shutil.copytree(llama, source)
    spoil(source)
    monkeypatch.chdir(tmp_path)
    for command in (
        ("port", source, dest, "--to", "meta"), ("pool", source, dest, "--num-kv-heads", 1),
        ("expand", source, dest), ("inspect", source), ("verify", source, llama), ("verify", llama, source),
    ):  # fmt: skip
        refused(run(*command), dest, str(source), *named)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("port", "--to", "mlx"), ("mlx", "huggingface")),
        (("port", "--to", "meta", "--dtype", "int8"), ("int8",)),
        (("port", "--to", "torch.nn.MultiheadAttention"), ("torch.nn.MultiheadAttention", "K")),
        (("port", "--to", "gemma3_text"), ("gemma3_text",)),
        (("pool", "--num-kv-heads", 3), ("3", "K = 2")),
        (("pool", "--num-kv-heads", 0), ("num_kv_heads",)),
        (("expand", "--num-kv-heads", 4), ("4",)),
    ],
)
def test_bad_requests_are_one_sentence_and_nothing_written(llama, tmp_path, arguments, named):
    command, *options = arguments
    refused(run(command, llama, tmp_path / "dest", *options), tmp_path / "dest", *named)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ("meta", ("meta", "head_dim", "H = 10, D = 30, N = 6")),
        ("llama", ("llama", "no place for attention_post_norm, feed_forward_post_norm")),
        ("olmo2", ("olmo2", "no place for attention_norm, feed_forward_norm")),
        ("starcoder2", ("starcoder2", "feed_forward.gate")),
        ("gemma2", ("gemma2", "attention[0].qk_norm 'rms_plus_one' (it would be None) and in 2 more")),
    ],
)
def test_a_layout_that_cannot_say_it_is_refused_by_name(gemma3, tmp_path, layout, named):
    refused(run("port", gemma3, tmp_path / "dest", "--to", layout), tmp_path / "dest", *named)


@pytest.mark.parametrize("name", ["dest.gguf", "dest.pth"])
def test_a_folder_does_not_take_the_name_of_a_file_that_is_not_written(llama, tmp_path, name):
    refused(run("port", llama, tmp_path / name, "--to", "meta"), tmp_path / name, name, "folder", ".npz")


def test_a_file_without_its_folder_is_told_where_its_settings_are(llama, tmp_path):
    refused(
        run("inspect", llama / "model.safetensors"), tmp_path / "dest", "no config.json", f"give its folder, {llama}"
    )


def test_a_package_that_is_missing_is_named(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    dest = tmp_path / "dest.orbax"
    refused(run("port", llama, dest, "--to", "meta"), dest, "install the package orbax")


def test_a_full_disk_is_said(llama, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(run("port", llama, tmp_path / "dest", "--to", "meta"), tmp_path / "dest", "dest")


def test_the_porting_study_runs_and_leaves_nothing(tmp_path):
    """How fast is no matter for a test; that every byte of attention is transposed in little memory is."""
    found = tmp_path / "found.json"
    fine("study", "porting", "--gigabytes", 0.01, "--rounds", 1, "--folder", tmp_path, "--json", found)
    (row,) = json.loads(found.read_text())["rows"]
    assert row["gigabytes"] == pytest.approx(0.01, rel=0.2)
    assert row["transposed"] > 0.4
    assert row["port_seconds"] > 0
    assert row["cp_seconds"] > 0
    assert list(tmp_path.iterdir()) == [found]

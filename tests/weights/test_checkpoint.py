"""Checkpoint files: every format that is read, against files that its own package wrote, and every format that is
written, against what its own package reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from tests.helpers import assert_same_bits

Arrays = dict[str, np.ndarray]

pytestmark = pytest.mark.no_shape_checks


def arrays() -> Arrays:
    """Every dtype that weights have, an array without axes, one without elements, a transposed view."""
    rng = np.random.default_rng(7)
    return {
        "query.kernel": rng.normal(size=(5, 3, 2)).astype(np.float32),
        "query.bias": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "layers.0.scale": np.array(1.5, np.float16),
        "layers.0.empty": np.zeros((0, 3), np.float32),
        "layers.0.wide": rng.normal(size=(11, 13)),
        "layers.1.transposed": rng.normal(size=(11, 13)).astype(ml_dtypes.bfloat16).T,
        "layers.1.places": np.arange(17, dtype=np.int64),
    }


def tensors(given: Mapping[str, np.ndarray]) -> list[tuple[str, TensorInfo, Callable[[], np.ndarray]]]:
    return [(name, TensorInfo(x.shape, x.dtype.name), partial(given.__getitem__, name)) for name, x in given.items()]


# --- files that others wrote ---------------------------------------------------------------------------------------


def by_safetensors(folder: Path, given: Arrays) -> Path:
    from safetensors.numpy import save_file

    save_file({name: np.array(x, order="C") for name, x in given.items()}, folder / "one.safetensors")
    return folder / "one.safetensors"


def by_safetensors_in_shards(folder: Path, given: Arrays) -> Path:
    from safetensors.numpy import save_file

    names = list(given)
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for shard, inside in shards.items():
        save_file({name: np.array(given[name], order="C") for name in inside}, folder / shard)
    places = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def by_torch(folder: Path, given: Arrays, name: str = "one.pt", wrap: str | None = None) -> Path:
    import torch

    state = {key: torch.from_numpy(np.array(x.astype(np.float64))).to(_torch_dtype(x)) for key, x in given.items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, folder / name)
    return folder / name


def _torch_dtype(array: np.ndarray) -> Any:
    import torch

    return getattr(torch, array.dtype.name)


def by_torch_in_shards(folder: Path, given: Arrays) -> Path:
    names = list(given)
    shards = {"pytorch_model-1.bin": names[:3], "pytorch_model-2.bin": names[3:]}
    for shard, inside in shards.items():
        by_torch(folder, {name: given[name] for name in inside}, shard)
    places = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def by_orbax(folder: Path, given: Arrays) -> Path:
    import orbax.checkpoint as ocp

    nested: dict[str, Any] = {}
    for name, array in given.items():
        node = nested
        for key in name.split(".")[:-1]:
            node = node.setdefault(key, {})
        node[name.split(".")[-1]] = np.array(array, order="C")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", nested)
    return folder / "orbax"


def by_numpy(folder: Path, given: Arrays) -> Path:
    np.savez_compressed(folder / "one.npz", **given)
    return folder / "one.npz"


WRITTEN_ELSEWHERE = {
    "safetensors": by_safetensors,
    "safetensors in shards": by_safetensors_in_shards,
    "torch": by_torch,
    "torch in shards": by_torch_in_shards,
    "torch under a name": partial(by_torch, wrap="state_dict"),
    "npz": by_numpy,
    "orbax": by_orbax,
}


@pytest.mark.parametrize("write", WRITTEN_ELSEWHERE.values(), ids=WRITTEN_ELSEWHERE)
def test_files_of_other_packages_are_read_bit_for_bit(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    given = arrays()
    if write is by_numpy:
        given = {name: x for name, x in given.items() if x.dtype != ml_dtypes.bfloat16}  # NumPy would pickle it
    if write is by_orbax:
        del given["layers.0.empty"]  # orbax refuses to save it
    checkpoint = open_checkpoint(write(tmp_path, given))
    assert_same_bits(checkpoint, given, in_order=False)
    for name, array in given.items():
        assert checkpoint.info(name) == TensorInfo(array.shape, array.dtype.name)


def test_the_state_of_an_nnx_module_is_read_by_its_own_names(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp
    from flax import nnx

    layer = nnx.MultiHeadAttention(num_heads=3, in_features=5, qkv_features=6, decode=False, rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(layer, nnx.Param))
    checkpoint = open_checkpoint(tmp_path / "state")
    assert sorted(checkpoint) == [
        f"{part}.{kind}" for part in ("key", "out", "query", "value") for kind in ("bias", "kernel")
    ]
    np.testing.assert_array_equal(checkpoint["value.kernel"], layer.value.kernel[...])


def test_a_gguf_keeps_bfloat16_and_gives_its_fields(tmp_path: Path) -> None:
    import gguf

    given = np.random.default_rng(1).normal(size=(3, 64)).astype(ml_dtypes.bfloat16)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_array("general.tags", ["an", "es"])
    writer.add_rope_freq_base(1e5)
    writer.add_tensor("kept", given.view(np.uint16).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    kind = gguf.GGMLQuantizationType.Q4_1
    packed = gguf.quants.quantize(given.astype(np.float32), kind)
    writer.add_tensor("packed", packed, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "one.gguf")
    assert checkpoint.format == "gguf"
    assert checkpoint.settings["general.architecture"] == "llama"
    assert checkpoint.settings["general.tags"] == ["an", "es"]
    assert checkpoint.settings["llama.rope.freq_base"] == 1e5
    assert checkpoint.info("packed") == TensorInfo((3, 64), "float32", "Q4_1")
    np.testing.assert_array_equal(checkpoint["packed"], gguf.quants.dequantize(packed, kind))
    assert checkpoint["kept"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(checkpoint["kept"], given)


# --- files that we write -------------------------------------------------------------------------------------------


def through_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.numpy import load_file

    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {name: x for file in files for name, x in load_file(file).items()}


def through_numpy(path: Path) -> Mapping[str, Any]:
    with np.load(path) as archive:
        loaded = {name: archive[name] for name in archive.files if not name.endswith(".json")}
    return {name: x.view(ml_dtypes.bfloat16) if x.dtype.str == "|V2" else x for name, x in loaded.items()}


def through_orbax(path: Path) -> Mapping[str, Any]:
    import orbax.checkpoint as ocp

    def flat(node: Any, prefix: str) -> Arrays:
        if not isinstance(node, dict):
            return {prefix: np.asarray(node)}
        return {
            name: x for key, inner in node.items() for name, x in flat(inner, f"{prefix}.{key}".lstrip(".")).items()
        }

    return flat(ocp.PyTreeCheckpointer().restore(path), "")


WRITTEN_HERE = {
    "one.safetensors": ("safetensors", through_safetensors),
    "folder": ("safetensors", through_safetensors),
    "one.npz": ("npz", through_numpy),
    "orbax": ("orbax", through_orbax),
}


@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_other_packages_read_what_is_written(name: str, tmp_path: Path) -> None:
    form, load = WRITTEN_HERE[name]
    given, written = arrays(), []
    if form == "orbax":
        del given["layers.0.empty"]
    save_checkpoint(
        tmp_path / name, tensors(given), format=form, settings={"heads": 5}, manifest={"by": 1}, done=written.append
    )
    assert_same_bits(load(tmp_path / name), given, in_order=False)
    checkpoint = open_checkpoint(tmp_path / name)
    assert_same_bits(checkpoint, given, in_order=False)
    assert (checkpoint.format, checkpoint.settings, checkpoint.manifest) == (form, {"heads": 5}, {"by": 1})
    assert sum(written) == sum(x.nbytes for x in given.values())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_shards_have_the_size_given_and_an_index_of_all_tensors(tmp_path: Path) -> None:
    given = {f"tensor.{i}": np.full((10, 10), i, np.float32) for i in range(7)}
    save_checkpoint(tmp_path / "out", tensors(given), shard_bytes=900)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)), "model.safetensors.index.json"]
    index = json.loads((tmp_path / "out" / names[-1]).read_text())
    assert index["metadata"] == {"total_size": 2800}
    assert [index["weight_map"][name] for name in given] == [names[i // 2] for i in range(7)]
    assert_same_bits(open_checkpoint(tmp_path / "out"), given, in_order=False)


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    """Hugging Face's own loader of sharded files, and its check of the `format` in the header."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=11)
    model = LlamaForCausalLM(config)
    given = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    save_checkpoint(tmp_path / "out", tensors(given), settings=config.to_dict(), shard_bytes=600)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_bits({name: x.detach().numpy() for name, x in loaded.state_dict().items()}, given, in_order=False)


def test_data_stay_on_the_disk_until_they_are_read(tmp_path: Path) -> None:
    """A tensor of a dtype that is refused can be listed, and the others read."""
    from safetensors.numpy import save_file

    save_file({"plain": np.ones(3), "odd": np.ones(3, ml_dtypes.float8_e8m0fnu)}, tmp_path / "one.safetensors")
    checkpoint = open_checkpoint(tmp_path / "one.safetensors")
    assert checkpoint.info("odd") == TensorInfo((3,), "F8_E8M0")
    np.testing.assert_array_equal(checkpoint["plain"], np.ones(3))
    with pytest.raises(CheckpointError, match=r"one\.safetensors: tensor 'odd': expected a dtype .* got F8_E8M0"):
        checkpoint["odd"]


# --- refusals ------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, tensors({"a": np.zeros(3)}))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"one\.safetensors: exists already; give force"):
        save_checkpoint(path, tensors({"a": np.ones(3)}))
    assert path.read_bytes() == before
    save_checkpoint(path, tensors({"a": np.ones(3)}), force=True)
    np.testing.assert_array_equal(open_checkpoint(path)["a"], np.ones(3))


def test_an_overwritten_folder_loses_its_weights_and_keeps_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_checkpoint(out, tensors(arrays()), settings={"old": 1}, manifest={"old": 1}, shard_bytes=300)
    (out / "onnx").mkdir()
    for extra in ("tokenizer.json", "onnx/model.onnx"):
        (out / extra).write_text("kept")
    given = {"a": np.ones(3)}
    save_checkpoint(out, tensors(given), settings={"new": 1}, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "onnx", "tokenizer.json"]
    assert (out / "onnx" / "model.onnx").read_text() == "kept"
    assert open_checkpoint(out).settings == {"new": 1}
    assert_same_bits(open_checkpoint(out), given, in_order=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_may_be_written_over_its_own_source(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_checkpoint(out, tensors(arrays()), shard_bytes=300)
    source = open_checkpoint(out)
    again = [(name, source.info(name), partial(source.__getitem__, name)) for name in source]
    save_checkpoint(out, again, force=True)
    assert_same_bits(open_checkpoint(out), arrays(), in_order=False)


def test_a_folder_of_other_things_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="home: a folder that holds files but no checkpoint"):
        save_checkpoint(tmp_path / "home", tensors({"a": np.ones(3)}), force=True)
    with pytest.raises(CheckpointError, match="a folder and a file cannot take each other's place"):
        save_checkpoint(_as_folder(tmp_path / "x.safetensors"), tensors({"a": np.ones(3)}), force=True)
    assert (tmp_path / "home" / "notes.txt").read_text() == "mine"


def _as_folder(path: Path) -> Path:
    save_checkpoint(path.with_suffix(""), tensors({"a": np.zeros(3)}))
    return path.with_suffix("").rename(path)


def wrong_shape() -> np.ndarray:
    return np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a", TensorInfo((2, 3), "float32"), wrong_shape)], r"'a': expected float32 \(2, 3\) to write, got .*3, 2"),
        ([("a", TensorInfo((3, 2), "float16"), wrong_shape)], r"'a': expected float16 \(3, 2\) to write, got float32"),
        ([("a", TensorInfo((3, 2), "float32"), wrong_shape)] * 2, "tensor 'a': given twice"),
        ([("a", TensorInfo((3, 2), "float128"), wrong_shape)], "tensor 'a': expected a dtype of .* got float128"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "npz", "orbax"])
def test_arrays_that_differ_from_their_info_are_not_written(
    given: list[Any], message: str, form: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "out", given, format=form)
    assert not list(tmp_path.iterdir())


def test_orbax_trees_have_no_tensor_within_a_tensor_and_none_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"out: tensor 'a\.b\.c': cannot be in a tree with a tensor 'a'"):
        save_checkpoint(tmp_path / "out", tensors({"a": np.ones(3), "a.b.c": np.ones(2)}), format="orbax")
    with pytest.raises(CheckpointError, match=r"out: tensor 'a': orbax stores no tensors without elements"):
        save_checkpoint(tmp_path / "out", tensors({"a": np.ones((3, 0))}), format="orbax")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^format: expected safetensors, npz, gguf, orbax, got 'hdf5'$"):
        save_checkpoint(tmp_path / "x", [], format="hdf5")
    with pytest.raises(CheckpointError, match=r"one\.gguf: expected settings with general\.architecture"):
        save_checkpoint(tmp_path / "one.gguf", [], format="gguf")
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"weights\.txt: expected a folder or a file .* got suffix '\.txt'"):
        open_checkpoint(tmp_path / "weights.txt")
    with pytest.raises(CheckpointError, match=r"none\.npz: no such file or folder"):
        open_checkpoint(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match=r"expected a folder that holds one of model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"one\.gguf: install the package gguf"):
        open_checkpoint(tmp_path / "one.gguf")

"""Bad files and bad requests: exit code 2, one sentence, nothing written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.checkpoints import K_PROJ, Q_PROJ, refused, run

pytestmark = pytest.mark.no_shape_checks


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


class MakesAFolder:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def pickled_call(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({K_PROJ: MakesAFolder()}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "truncated": (lambda f: replaced(f, whole(f)[:-100]), ("model.safetensors",)),
    "empty": (lambda f: replaced(f, b""), ("model.safetensors: the file is empty",)),
    "git-lfs's pointer": (
        lambda f: replaced(f, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("model.safetensors", "git lfs pull"),
    ),
    "corrupt": (lambda f: replaced(f, b"\xff" * 1000), ("model.safetensors",)),
    "false header length": (
        lambda f: replaced(f, (2**62).to_bytes(8, "little") + whole(f)[8:]),
        ("model.safetensors",),
    ),
    "overlapping offsets": (lambda f: with_header(f, overlap), ("model.safetensors",)),
    "wrong shape": (lambda f: with_header(f, misshape), (K_PROJ, "(24, 72)", "(72, 24)")),
    "tensor missing": (lambda f: with_header(f, lambda h: h.pop(K_PROJ)), ("model",)),
    "missing shard": (lambda f: reindexed(f, "gone.safetensors"), ("gone.safetensors", K_PROJ)),
    "shard outside": (lambda f: reindexed(f, "../part.safetensors"), ("model.safetensors.index.json", K_PROJ)),
    "shard without it": (lambda f: (reindexed(f, "x.safetensors"), save_file({}, f / "x.safetensors")), (K_PROJ,)),
    "pickle": (pickled_call, ("pytorch_model.bin",)),
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
        ("port", source, dest, "--to", "meta"),
        ("pool", source, dest, "--num-kv-heads", 1),
        ("expand", source, dest),
        ("inspect", source),
        ("verify", source, llama),
        ("verify", llama, source),
    ):
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
def test_a_layout_that_cannot_express_a_config_is_refused_by_name(gemma3, tmp_path, layout, named):
    refused(run("port", gemma3, tmp_path / "dest", "--to", layout), tmp_path / "dest", *named)


@pytest.mark.parametrize("name", ["dest.gguf", "dest.pth"])
def test_a_folder_does_not_take_the_name_of_a_file_that_is_not_written(llama, tmp_path, name):
    refused(run("port", llama, tmp_path / name, "--to", "meta"), tmp_path / name, name, "folder", ".npz")


def test_a_file_without_its_folder_is_refused_with_the_folder(llama, tmp_path):
    refused(
        run("inspect", llama / "model.safetensors"), tmp_path / "dest", "no config.json", f"give its folder, {llama}"
    )


def test_a_package_that_is_missing_is_named(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    dest = tmp_path / "dest.orbax"
    refused(run("port", llama, dest, "--to", "meta"), dest, "orbax is not installed: pip install 'gqa[orbax]'")


def test_a_full_disk_is_reported(llama, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(run("port", llama, tmp_path / "dest", "--to", "meta"), tmp_path / "dest", "dest")

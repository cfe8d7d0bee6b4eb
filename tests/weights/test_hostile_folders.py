"""Folders that must not hang, fill the memory, or lead out of themselves; and text in them that is no text."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gqa_weights import port
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.checkpoint.formats import orbax
from gqa_weights.checkpoint.printable import printable, sentence
from gqa_weights.families import read_model
from gqa_weights.tokenizer import read_tokenizer
from tests.cli.checkpoints import ok, refused, run
from tests.weights.fuzz import sources

pytestmark = pytest.mark.no_shape_checks

MOST = 2**28  # bytes by which reading a hostile file may grow this process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sources.huggingface(tmp_path / "model")
    return tmp_path / "model"


def read_everything(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    model = read_model(checkpoint)
    for name in model.weights:
        model.weights[name]
    read_tokenizer(checkpoint).encode("hello")


NAMES = ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "expected a file, got a pipe"),
        ("device", "expected a file, got a device"),
        ("folder", "expected a file, got a folder"),
        ("loop", "a loop of links"),
        ("nothing", "a link to 'nowhere', which does not exist"),
        ("outside", "outside of the folder: copy the file, or give it alone"),
    ],
)
def test_only_regular_files_of_the_folder_are_read(name: str, kind: str, said: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "outside":
        (folder.parent / "secret").write_bytes(content)
        path.symlink_to("../secret")
    else:
        path.symlink_to({"device": "/dev/zero", "loop": name, "nothing": "nowhere"}[kind])
    with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
        read_everything(folder)


def test_links_within_the_folder_and_into_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "one")
    (folder / "model.safetensors").symlink_to("weights/one")
    read_everything(folder)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in NAMES:
        (blobs / name).write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    read_everything(snapshot)


# --- what would fill the memory --------------------------------------------------------------------------------------


def deep_lists(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": [' + "[]," * 3_000_000 + "[]]}")


def manifest(folder: Path, count: Any) -> None:
    config = {"attention": [{"count": count, "embed_dim": 4, "num_heads": 2}, {"count": -count, "embed_dim": 4}]}
    (folder / "config.json").unlink()
    (folder / "gqa_manifest.json").write_text(json.dumps({"layout": "canonical", "family": "llama", "config": config}))


def packed_settings(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "one.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"[" + b" " * 2**26 + b"]")
    return folder / "one.npz"


def gguf_list(folder: Path, kind: int, count: int, size: int) -> Path:
    field = struct.pack("<Q", 4) + b"list" + struct.pack("<IIQ", 9, kind, count) + bytes(count * size)
    (folder / "one.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    return folder / "one.gguf"


def long_header(folder: Path) -> Path:
    text = b'{"a":[' + b"{}," * 6_000_000 + b"{}]}"
    (folder / "one.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder / "one.safetensors"


def long_tokenizer(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**27)


FILLING = {
    "config.json of 9 MB": (deep_lists, "expected at most 8,000,000 bytes, got 9,000,"),
    "a manifest of 10**9 layers": (lambda f: manifest(f, 10**9), "expected 1 to 10000 layers in all, got counts"),
    "settings that unpack to 64 MB": (packed_settings, "expected at most 8,000,000 bytes, got 67,108,866"),
    "a GGUF list of 20 million bytes": (lambda f: gguf_list(f, 0, 20_000_000, 1), "at most 2,097,152 values in all"),
    "a GGUF list of 5 million texts": (lambda f: gguf_list(f, 8, 5_000_000, 8), "at most 2,097,152 values in all"),
    "a safetensors header of 18 MB": (long_header, "expected at most 16,000,000 bytes, got 18,000,"),
    "a tokenizer.json of 128 MB": (long_tokenizer, "expected at most 67,108,864 bytes, got 134,217,728"),
}


@pytest.mark.parametrize("case", FILLING)
def test_files_that_would_fill_the_memory_are_refused_before(case: str, folder: Path) -> None:
    fill, said = FILLING[case]
    path = fill(folder) or folder
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=said):
        read_everything(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


def test_a_manifest_with_a_window_that_no_backend_holds_is_refused(tmp_path: Path) -> None:
    sources.huggingface(tmp_path / "source")
    sources.ported("model", "canonical", tmp_path, tmp_path / "source")
    file = tmp_path / "model" / "gqa_manifest.json"
    stated = json.loads(file.read_text())
    for window, said in ((2**31, "window: expected at most 2147483647"), (2**63, "window: expected an integer")):
        stated["config"]["attention"][0]["window"] = window
        file.write_text(json.dumps(stated))
        with pytest.raises(CheckpointError, match=f"gqa_manifest.json: .*{said}"):
            read_model(open_checkpoint(tmp_path / "model"))


# --- text ------------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31m\x1b]0;title\x07\u202egnp.exe\x00\u200b\r\n\ud800"


def test_control_and_bidirectional_characters_are_escapes() -> None:
    shown = printable(HOSTILE)
    assert shown == r"\x1b[31m\x1b]0;title\x07\u202egnp.exe\x00\u200b\r\n\ud800"
    assert shown.isprintable()
    assert printable("näïve 漢字 [bold]") == "näïve 漢字 [bold]"
    assert printable("a\tb\n", keep="\n\t") == "a\tb\n"
    assert len(sentence("x" * 10**6)) < 2000
    assert sentence("a\n b\x1b") == r"a b\x1b"


def test_errors_show_no_raw_text_of_a_file(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for values in ({HOSTILE: 1}, {"hidden_act": HOSTILE}, {"model_type": HOSTILE}, {"x": "y" * 3_000_000}):
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        with pytest.raises(CheckpointError) as raised:
            read_everything(folder)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 2000


def test_orbax_is_read_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.huggingface(tmp_path / "source")
    sources.ported("tree.orbax", "canonical", tmp_path, tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    assert np.isfinite(open_checkpoint("tree.orbax")["norm.weight"]).all()


def test_a_piece_that_orbax_has_not_is_no_zeros(tmp_path: Path) -> None:
    import tensorstore

    sources.huggingface(tmp_path / "source")
    sources.ported("tree.orbax", "canonical", tmp_path, tmp_path / "source")
    base = (tmp_path / "tree.orbax").as_uri()
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    pieces = [key for key in store.list().result() if key.startswith(b"norm.weight/") and key.endswith(b"0")]
    assert pieces
    for key in pieces:
        store.write(key, None).result()
    checkpoint = open_checkpoint(tmp_path / "tree.orbax")
    with pytest.raises(CheckpointError, match=r"tensor 'norm\.weight': "):
        checkpoint.reader("norm.weight")((slice(0, 4),))
    with pytest.raises(CheckpointError, match=r"tensor 'norm\.weight': "):
        checkpoint["norm.weight"]


def test_reads_that_end_after_orbax_failed_print_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop that they would report to is closed; all other errors are still reported."""
    reported: list[str] = []

    def report(unraisable: Any) -> None:
        reported.append(str(unraisable.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", report)
    with orbax._quiet():
        pass
    assert sys.unraisablehook is report
    with pytest.raises(ValueError, match="damaged"), orbax._quiet():
        raise ValueError("damaged")
    for said in ("Event loop is closed", "another error"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(said)))  # type: ignore[arg-type]
    assert reported == ["another error"]


def test_a_gguf_with_merges_outside_of_its_vocabulary_is_ported_without_its_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MERGES", [("h", "é")])
    sources.gguf(folder, folder)
    planned = port.plan(folder / "one.gguf", "canonical")
    assert planned.files == {}
    assert "the tokenizer is not carried" in planned.notes[0]


# --- what people have on their disks: one sentence, exit code 2, and nothing changed --------------------------------

POINTERS = {
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "annex": b"/annex/objects/SHA256E-s3--abc.safetensors\n",
    "page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "json": b'{"error": "Repository not found"}',
}


def content(name: str, data: bytes) -> Callable[[Path], None]:
    """A folder with another content of one file."""
    return lambda folder: set_bytes(folder / name, data)


def set_bytes(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def alone(name: str, data: bytes) -> Callable[[Path], Path]:
    """A file to be read by itself."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def renamed(name: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return rename


def indexed(place: str) -> Callable[[Path], None]:
    """All tensors are in part.safetensors, and the index says that they are in `place`."""

    def write(folder: Path) -> None:
        names = [*open_checkpoint(folder)]
        renamed("part.safetensors")(folder)
        index = json.dumps({"weight_map": dict.fromkeys(names, place)})
        (folder / "model.safetensors.index.json").write_text(index)

    return write


def annexed_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../.git/annex/objects/aa/SHA256E-x")


def half_written_orbax(folder: Path) -> Path:
    (folder / "tree" / "d").mkdir(parents=True)
    (folder / "tree" / "_METADATA").write_text("{}")
    return folder / "tree"


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def config(before: str, after: str) -> Callable[[Path], None]:
    """config.json with a piece of its text replaced."""

    def write(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        assert before in text
        (folder / "config.json").write_text(text.replace(before, after))

    return write


def gguf_header(order: str = "<", version: int = 3, tensors: int = 0, fields: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, count) + fields


SPLIT = struct.pack("<Q", 11) + b"split.count" + struct.pack("<IH", 2, 3)
TWICE = '{"weight_map": {"a": "part.safetensors", "a": "part.safetensors"}}'

AWKWARD: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "a git-lfs pointer": (content("model.safetensors", POINTERS["lfs"]), "run `git lfs pull`"),
    "a git-annex pointer": (content("model.safetensors", POINTERS["annex"]), "run `git annex get`"),
    "a git-annex link": (annexed_link, "which does not exist: run `git annex get`"),
    "a web page": (content("model.safetensors", POINTERS["page"]), "model.safetensors: a web page, no weights"),
    "a JSON text": (content("model.safetensors", POINTERS["json"]), "model.safetensors: a JSON text, no weights"),
    "another text": (alone("one.npz", b"hello, world"), "one.npz: a text that begins 'hello, world', no weights"),
    "no safetensors": (content("model.safetensors", b"\x89" * 99), "no safetensors file, or a part of one"),
    "the end is missing": (cut, "incomplete metadata, file not fully covered"),
    "half an orbax folder": (half_written_orbax, "_METADATA: no tree_metadata in it: orbax did not finish"),
    "one shard of two": (renamed("pytorch_model-00001-of-00002.bin"), "got 'pytorch_model-00001-of-00002.bin'"),
    "capital letters": (renamed("MODEL.SAFETENSORS"), "no tensors: expected one of model.safetensors, "),
    "a nameless shard": (indexed(""), "index.json: tensor 'model.embed_tokens.weight': expected the name"),
    "a shard outside": (indexed("../part.safetensors"), "expected the name of a file in the same folder, got '../part"),
    "a shard that is not there": (
        indexed("b.safetensors"),
        "b.safetensors: tensor 'model.embed_tokens.weight': no such",
    ),
    "an index of itself": (indexed("model.safetensors.index.json"), "index.json: a JSON text, no weights"),
    "an empty GGUF": (alone("one.gguf", gguf_header()), "no general.architecture, which names the family, in its"),
    "a part of a GGUF": (
        alone("one-00002-of-00003.gguf", gguf_header(fields=SPLIT, count=1)),
        "a part of a model that is split into 3: join them by `llama-gguf-split --merge` first",
    ),
    "a GGUF of the other byte order": (alone("one.gguf", gguf_header(">")), "no general.architecture"),
    "a GGUF of a later version": (alone("one.gguf", gguf_header(version=99)), "version 99"),
    "a GGUF of 2**62 tensors": (alone("one.gguf", gguf_header(tensors=2**62)), "at most 131,072 tensors, got 4,611,"),
    "a suffix in capital letters": (alone("one.GGUF", gguf_header()), "got suffix '.GGUF'"),
    "settings that are a list": (content("config.json", b"[]"), "config.json: expected a JSON object, got list"),
    "settings cut off": (content("config.json", b'{"model_type": "lla'), "config.json: Unterminated string"),
    "a setting twice": (config('"hidden_size"', '"hidden_size": 9, "hidden_size"'), "one name is given twice"),
    "a setting of 400 digits": (config('"hidden_size": 24', '"hidden_size": ' + "9" * 400), "got inf"),
    "a setting that is a text": (config('"hidden_size": 24', '"hidden_size": "24"'), "got '24'"),
    "settings of 20,000 levels": (content("config.json", b'{"a":' * 20_000 + b"1" + b"}" * 20_000), "recursion"),
}


def everything(folder: Path) -> dict[str, bytes | str]:
    """Every file by its path, a link by its target."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in found}


@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_folders_are_refused_in_one_sentence(case: str, folder: Path, tmp_path: Path) -> None:
    spoil, said = AWKWARD[case]
    path = spoil(folder) or folder
    before = everything(tmp_path)
    refused(run("port", path, tmp_path / "dest", "--to", "canonical"), tmp_path / "dest", path, said)
    assert everything(tmp_path) == before


SOUND: dict[str, Callable[[Path], None]] = {
    "as it was saved": lambda folder: None,
    "a byte order mark": lambda folder: set_bytes(
        folder / "config.json", b"\xef\xbb\xbf" + (folder / "config.json").read_bytes()
    ),
    "an index of one shard": indexed("part.safetensors"),
    "the family's settings in UTF-16": lambda folder: set_bytes(
        folder / "config.json", (folder / "config.json").read_text().encode("utf-16")
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_unusual_folders_that_are_right_are_ported(case: str, folder: Path, tmp_path: Path) -> None:
    expected = {name: x.copy() for name, x in open_checkpoint(folder).items()}
    SOUND[case](folder)
    before = everything(folder)
    ok("port", folder, tmp_path / "dest", "--to", "huggingface")
    found = open_checkpoint(tmp_path / "dest")
    assert {name: x.tobytes() for name, x in found.items()} == {name: x.tobytes() for name, x in expected.items()}
    assert everything(folder) == before

"""Malformed safetensors files, indexes and settings: each is a CheckpointError that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from tests.weights.sound_files import read_all, safetensors

pytestmark = pytest.mark.no_shape_checks


def with_header(edit: Callable[[dict[str, Any]], Any], *, pad: bytes = b"") -> bytes:
    """A safetensors file with an edited header."""
    raw = safetensors()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header = edit(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :] + pad


def edited(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(values)


def twice(header: dict[str, Any]) -> bytes:
    text = json.dumps(header)
    return (text[:-1] + ', "head": ' + json.dumps(header["head"]) + "}").encode()


MALFORMED_SAFETENSORS = {
    "empty": b"",
    "cut in the length": safetensors()[:5],
    "cut in the header": safetensors()[:40],
    "cut in the data": safetensors()[:-1],
    "more data than the header has": with_header(dict, pad=b"more"),
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + safetensors()[8:],
    "a header longer than the file": (10**6).to_bytes(8, "little") + safetensors()[8:],
    "a header that is no JSON": with_header(lambda header: b"{" * 50),
    "a header nested deeply": with_header(lambda header: b'{"a":' * 100_000),
    "a header that is a list": with_header(lambda header: b"[]"),
    "a header that is not UTF-8": with_header(lambda header: json.dumps(header).encode().replace(b"head", b"he\xffd")),
    "overlapping offsets": with_header(edited("head", data_offsets=[8, 184])),
    "offsets backwards": with_header(edited("head", data_offsets=[176, 0])),
    "negative offsets": with_header(edited("head", data_offsets=[-8, 168])),
    "a shape too large": with_header(edited("head", shape=[2, 13])),
    "a shape that overflows": with_header(edited("head", shape=[2**62, 2**62])),
    "a negative shape": with_header(edited("head", shape=[-2, -11])),
    "an unknown dtype": with_header(edited("head", dtype="F99")),
    "another dtype": with_header(edited("head", dtype="F32")),
    "a name twice": with_header(twice),
    "settings that are no object": with_header(edited("__metadata__", config="[1]")),
}


@pytest.mark.parametrize("case", MALFORMED_SAFETENSORS)
def test_a_malformed_safetensors_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(MALFORMED_SAFETENSORS[case])
    with pytest.raises(CheckpointError, match=r"one\.safetensors: "):
        read_all(tmp_path / "one.safetensors")


MALFORMED_INDEXES = {
    "no index": (b"", r"model\.safetensors\.index\.json: "),
    "no map": (b"{}", r"index\.json: expected a weight_map"),
    "an empty map": (b'{"weight_map": {}}', r"index\.json: expected a weight_map"),
    "a map that is a list": (b'{"weight_map": ["head"]}', r"index\.json: expected a weight_map"),
    "not UTF-8": (b'{"weight_map": {"\xff": "one.safetensors"}}', r"index\.json: "),
    "nested deeply": (b'{"weight_map":' * 100_000, r"index\.json: "),
    "a name twice": (b'{"weight_map": {"head": "one.safetensors", "head": "two"}}', r"index\.json: one name .* twice"),
    "a missing shard": (b'{"weight_map": {"head": "two.safetensors"}}', r"two\.safetensors: tensor 'head': no such"),
    "a tensor not in its shard": (b'{"weight_map": {"tail": "one.safetensors"}}', r"one\.saf.*'tail': .* it is not"),
    "a shard outside": (b'{"weight_map": {"head": "../out.safetensors"}}', r"'head': .*same folder, got '\.\./out"),
    "an absolute shard": (b'{"weight_map": {"head": "/etc/passwd"}}', r"'head': .* same folder, got '/etc/passwd'"),
    "a shard above": (b'{"weight_map": {"head": ".."}}', r"/\.\.: expected a file, got a folder"),
    "a shard that is a folder": (b'{"weight_map": {"head": "folder"}}', r"folder: expected a file, got a folder"),
    "a shard with a zero": (b'{"weight_map": {"head": "one\\u0000.safetensors"}}', r"'head': .* same folder"),
    "a shard that is a number": (b'{"weight_map": {"head": 3}}', r"'head': .* same folder, got 3"),
    "a shard of another kind": (b'{"weight_map": {"head": "config.json"}}', r"config\.json: "),
}


@pytest.mark.parametrize("case", MALFORMED_INDEXES)
def test_a_malformed_index_is_refused_by_name(case: str, tmp_path: Path) -> None:
    folder, (index, message) = tmp_path / "model", MALFORMED_INDEXES[case]
    (folder / "folder").mkdir(parents=True)
    for path in (folder / "one.safetensors", tmp_path / "out.safetensors"):
        path.write_bytes(safetensors())
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=message):
        read_all(folder)


def test_a_damaged_shard_and_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json: one name is given twice"):
        open_checkpoint(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    (tmp_path / "one.safetensors").write_bytes(safetensors()[:-3])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"head": "one.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"/one\.safetensors: "):
        open_checkpoint(tmp_path)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors: expected a file, got a pipe"):
        open_checkpoint(tmp_path / "one.safetensors")

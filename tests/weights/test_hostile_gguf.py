"""Malformed GGUF files: each is a CheckpointError that names the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from tests.weights.sound_files import gguf, read_all

pytestmark = pytest.mark.no_shape_checks


def gguf_with(old: bytes, new: bytes) -> bytes:
    raw = gguf()
    assert raw.count(old) == 1
    return raw.replace(old, new)


def gguf_tensor(dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A GGUF file of one tensor with these dimensions, kind and offset in its header, and 64 bytes of data."""
    name = struct.pack("<Q", 4) + b"head"
    info = name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    return raw + b"\0" * (-len(raw) % 32) + b"\0" * 64


def gguf_list(length: int, kind: int) -> bytes:
    """A GGUF file whose one field is a list of `length` values, and which ends there."""
    field = struct.pack("<Q", 4) + b"list" + struct.pack("<IIQ", 9, kind, length)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field


MALFORMED_GGUF = {
    "empty": b"",
    "cut in the header": gguf()[:100],
    "cut in the data": gguf()[:-40],
    "another magic": b"GGML" + gguf()[4:],
    "another version": gguf()[:4] + struct.pack("<I", 9) + gguf()[8:],
    "2**60 tensors": gguf()[:8] + struct.pack("<Q", 2**60) + gguf()[16:],
    "2**60 fields": gguf()[:16] + struct.pack("<Q", 2**60) + gguf()[24:],
    "a list of 2**60 numbers": gguf_list(2**60, 4),
    "a list of 2**60 texts": gguf_list(2**60, 8),
    "a list of 2**60 lists": gguf_list(2**60, 9),
    "a list of an unknown kind": gguf_list(3, 99),
    "a name of 2**60 bytes": gguf_with(struct.pack("<Q", 10) + b"blocks.0.q", struct.pack("<Q", 2**60) + b"blocks.0.q"),
    "a name that is not UTF-8": gguf_with(b"blocks.0.q", b"blocks.0.\xff"),
    "a name twice": gguf_with(b"blocks.0.q", b"blocks.0.k"),
    "an unknown kind": gguf_tensor((4, 4), kind=99),
    "a shape too large": gguf_tensor((4, 5)),
    "a shape that overflows to nothing": gguf_tensor((2**32, 2**32)),
    "a shape that overflows to itself": gguf_tensor((2**62 + 4, 4)),
    "2**32 axes": gguf_tensor((4, 4)).replace(struct.pack("<IQ", 2, 4), struct.pack("<IQ", 2**32 - 1, 4)),
    "an offset outside": gguf_tensor((4, 4), offset=2**40),
    "a block cut": gguf_tensor((31,), kind=3),
}


@pytest.mark.parametrize("case", MALFORMED_GGUF)
def test_a_malformed_gguf_is_refused_by_name(case: str, tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(MALFORMED_GGUF[case])
    with pytest.raises(CheckpointError, match=r"one\.gguf: "):
        read_all(tmp_path / "one.gguf")


def test_a_handwritten_gguf_is_read_if_it_is_valid(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(gguf_tensor((4, 3)))
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "one.gguf")["head"], np.zeros((3, 4), np.float32))


def test_a_gguf_whose_tensors_overlap_is_refused(tmp_path: Path) -> None:
    raw = gguf()
    info = struct.pack("<Q", 10) + b"blocks.0.k"
    place = raw.index(info) + len(info) + 4 + 8 + 4
    (offset,) = struct.unpack_from("<Q", raw, place)
    (tmp_path / "one.gguf").write_bytes(raw[:place] + struct.pack("<Q", offset - 32) + raw[place + 8 :])
    with pytest.raises(
        CheckpointError, match=r"one\.gguf: tensor 'blocks\.0\.q': its bytes overlap those of 'blocks\.0\.k'"
    ):
        open_checkpoint(tmp_path / "one.gguf")

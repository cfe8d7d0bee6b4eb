"""Malformed .npz and PyTorch archives: each is a CheckpointError that names the file, and no code in them runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from tests.weights.sound_files import npz, read_all

pytestmark = pytest.mark.no_shape_checks


class MakesAFolder:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/gqa-test-was-called",)


def npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"\0" * 24, order: str = "False") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, head=np.array([MakesAFolder()], object))
    return buffer.getvalue()


MALFORMED_NPZ = {
    "empty": (b"", "one.npz: "),
    "cut": (npz()[:-30], "one.npz: "),
    "no archive": (npy((2, 3)), "one.npz: "),
    "a member that is no array": (archive(("head.txt", b"hello")), "'head.txt': expected a member whose name"),
    "an array cut": (archive(("head.npy", npy((2, 3))[:-1])), "'head': expected the bytes of float32 (2, 3), got 23"),
    "a shape too large": (archive(("head.npy", npy((2**40, 3)))), "'head': expected the bytes of float32"),
    "a shape that overflows": (archive(("head.npy", npy((2**62, 2**62)))), "'head': expected the bytes"),
    "a negative shape": (archive(("head.npy", npy((-2, -3)))), "'head': expected the bytes of float32 (-2, -3)"),
    "objects": (objects(), "'head': expected a dtype of plain numbers"),
    "a record": (archive(("head.npy", npy((6,), "V4"))), "'head': expected a dtype of plain numbers"),
    "an unknown dtype": (archive(("head.npy", npy((6,), "<q9"))), "one.npz: "),
    "another magic": (archive(("head.npy", b"NUMPY" * 20)), "one.npz: "),
    "a header without end": (archive(("head.npy", npy((2, 3))[:40])), "one.npz: "),
    "a header nested deeply": (archive(("head.npy", npy("(" * 5000))), "one.npz: "),  # type: ignore[arg-type]
    "unpacking for ever": (
        archive(("head.npy", npy((2**27,), "<f4", bytes(2**29))), compression=zipfile.ZIP_DEFLATED),
        "bytes that claim to unpack to",
    ),
    "settings that are no object": (archive(("config.json", b"3")), "one.npz: expected a JSON object"),
}


@pytest.mark.parametrize("case", MALFORMED_NPZ)
def test_a_malformed_npz_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED_NPZ[case]
    (tmp_path / "one.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(tmp_path / "one.npz")
    assert not Path("/tmp/gqa-test-was-called").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.npz").write_bytes(archive(("head.npy", npy((2, 3))), ("head.npy", npy((3, 2)))))
    with pytest.raises(CheckpointError, match="one name is given twice"):
        open_checkpoint(tmp_path / "one.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_of_an_npz_is_noticed(compression: int, tmp_path: Path) -> None:
    """The archive keeps a checksum of each array, as no other format does."""
    raw = bytearray(archive(("head.npy", npy((2, 3), data=bytes(range(24)))), compression=compression))
    raw[raw.index(bytes(range(5, 20))) if compression == zipfile.ZIP_STORED else 100] ^= 1
    (tmp_path / "one.npz").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"one\.npz: "):
        read_all(tmp_path / "one.npz")


def pickled(content: Any, *, compression: int = zipfile.ZIP_STORED, data: bytes = b"\0" * 24) -> bytes:
    """What torch.save would write for `content`; bytes are taken as the pickle itself."""
    text = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    members = (("a/data.pkl", text), ("a/byteorder", b"little"), ("a/data/0", data), ("a/version", b"3\n"))
    return archive(*members, compression=compression)


def state(shape: str, stride: str, *, offset: str = "K\x00", count: str = "K\x06") -> bytes:
    """The pickle of {"head": a float32 tensor}, with the shape and strides given as opcodes."""
    storage = "((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + f"0X\x03\0\0\0cpu{count}tQ"
    text = "\x80\x02}X\x04\0\0\0head" + f"ctorch._utils\n_rebuild_tensor_v2\n{storage}{offset}{shape}{stride}"
    return (text + "\x89ccollections\nOrderedDict\n)RtRs.").encode("latin1")


HUGE = "\x8a\x06" + (2**40).to_bytes(6, "little").decode("latin1")


def called(builder: bytes) -> bytes:
    return b"\x80\x02" + builder + HUGE.encode("latin1") + b"\x85R."


MALFORMED_TORCH = {
    "empty": (b"", "one.pt: "),
    "cut": (pickled(state("K\x02K\x03\x86", "K\x03K\x01\x86"))[:-30], "one.pt: "),
    "the format before 1.6": (pickle.dumps({"head": 3}), "one.pt: not the archive that torch.save writes"),
    "a call": (pickled({"head": MakesAFolder()}), "the file calls 'posix.mkdir'"),
    "all memory": (pickled(called(b"cbuiltins\nbytearray\n")), "builtins.bytearray"),
    "a tensor of any size": (pickled(called(b"ctorch\nFloatTensor\n")), "FloatTensor"),
    "globals by other opcodes": (pickled(pickle.dumps({"head": MakesAFolder()}, protocol=4)), "STACK_GLOBAL"),
    "a compressed pickle": (pickled(b"N" * 10**6, compression=zipfile.ZIP_DEFLATED), "expected an archive without"),
    "a number": (pickled({"head": 3}), "one.pt: expected a dictionary of tensors"),
    "a list": (pickled([1]), "one.pt: expected a dictionary of tensors"),
    "a dictionary within itself": (pickled(b"\x80\x02}q\0X\x05\0\0\0modelh\0s."), "expected a dictionary of tensors"),
    "a shape too large": (pickled(state(f"{HUGE}\x85", "K\x01\x85")), "one.pt: "),
    "one number seen 2**40 times": (pickled(state(f"{HUGE}\x85", "K\x00\x85")), "'head': "),
    "a negative shape": (pickled(state("J\xff\xff\xff\xff\x85", "K\x01\x85")), "one.pt: "),
    "a negative stride": (pickled(state("K\x02\x85", "J\xff\xff\xff\xff\x85")), "one.pt: "),
    "a record shorter than its storage": (
        pickled(state("K\x02K\x03\x86", "K\x03K\x01\x86", count="K\x64")),
        "'head': the file claims 100 numbers of float32, its record '0' has 24 bytes",
    ),
    "a record that is missing": (
        pickled(state("K\x02\x85", "K\x01\x85")).replace(b"a/data/0", b"a/data/7"),
        "no record '0'",
    ),
    "a place of 2**30 in the memo": (pickled(b"\x80\x02}r\0\0\0\x40."), "keeps a value at place 1073741824"),
    "fields set from outside": (
        pickled(state("K\x02\x85", "K\x01\x85")[:-2] + b"}X\x06\0\0\0strideJ\xff\xff\xff\xff\x85sbs."),
        "one.pt: ",
    ),
    "an offset outside": (pickled(state("K\x02\x85", "K\x01\x85", offset=HUGE)), "one.pt: "),
    "a storage larger than the file": (pickled(state("K\x02\x85", "K\x01\x85", count=HUGE)), "one.pt: "),
}


def test_a_handwritten_pickle_is_read_if_it_is_valid(tmp_path: Path) -> None:
    """The malformed ones above differ from this one in one place each."""
    numbers = np.arange(6, dtype=np.float32)
    content = pickled(state("K\x02K\x03\x86", "K\x03K\x01\x86"), data=numbers.tobytes())
    (tmp_path / "one.pt").write_bytes(content)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "one.pt")["head"], numbers.reshape(2, 3))


@pytest.mark.parametrize("case", MALFORMED_TORCH)
def test_a_malformed_torch_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED_TORCH[case]
    (tmp_path / "one.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(tmp_path / "one.pt")
    assert not Path("/tmp/gqa-test-was-called").exists()

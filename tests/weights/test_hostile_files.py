"""Files that are damaged or lie: whatever they hold, only a CheckpointError comes out that names the file.

The lies that are known are written down one by one; thousands of others are drawn, from a few bytes flipped to two
files spliced.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint

pytestmark = pytest.mark.no_shape_checks

MEMORY = 2**29  # bytes by which a whole run may grow: none of its files has a hundredth of that


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    json.dumps(checkpoint.settings)
    for name in checkpoint:
        array = checkpoint[name]
        info = checkpoint.info(name)
        assert (array.shape, array.dtype.name) == (info.shape, info.dtype)


# --- sound files, to begin with ------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "blocks.0.q": rng.normal(size=(5, 3)).astype(np.float32),
        "blocks.0.k": rng.normal(size=(7,)).astype(np.float16),
        "head": rng.normal(size=(2, 11)),
    }


def safetensors() -> bytes:
    from safetensors.numpy import save

    return save({**arrays(), "half": np.ones((3, 2), ml_dtypes.bfloat16)}, {"config": '{"heads": 5}'})


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    return buffer.getvalue()


def npz_compressed() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())
    return buffer.getvalue()


def torch() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(x) for name, x in arrays().items()}, buffer)
    return buffer.getvalue()


def gguf() -> bytes:
    import tempfile

    import gguf

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder) / "one.gguf", "llama")
        writer.add_array("general.tags", ["an", "es"])
        writer.add_array("llama.sizes", [3, 5, 7])
        for name, x in arrays().items():
            writer.add_tensor(name, x)
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), kind)
        writer.add_tensor("packed", packed, raw_dtype=kind)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        return (Path(folder) / "one.gguf").read_bytes()


SOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    "safetensors": ("one.safetensors", cache(safetensors)),
    "npz": ("one.npz", cache(npz)),
    "npz_compressed": ("one.npz", cache(npz_compressed)),
    "torch": ("one.pt", cache(torch)),
    "gguf": ("one.gguf", cache(gguf)),
}


@pytest.mark.parametrize("form", SOUND)
def test_the_files_to_damage_are_sound(form: str, tmp_path: Path) -> None:
    name, make = SOUND[form]
    (tmp_path / name).write_bytes(make())
    read_all(tmp_path / name)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / name)["head"], arrays()["head"])


# --- known lies ----------------------------------------------------------------------------------------------------


def with_header(edit: Callable[[dict[str, Any]], Any], *, pad: bytes = b"") -> bytes:
    """A safetensors file whose header says something else."""
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


SAFETENSORS_LIES = {
    "empty": b"",
    "cut in the length": safetensors()[:5],
    "cut in the header": safetensors()[:40],
    "cut in the data": safetensors()[:-1],
    "more data than the header says": with_header(dict, pad=b"more"),
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


@pytest.mark.parametrize("lie", SAFETENSORS_LIES)
def test_a_lying_safetensors_file_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(SAFETENSORS_LIES[lie])
    with pytest.raises(CheckpointError, match=r"one\.safetensors: "):
        read_all(tmp_path / "one.safetensors")


INDEX_LIES = {
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
    "a shard above": (b'{"weight_map": {"head": ".."}}', r"\.\.: tensor 'head': no such file"),
    "a shard that is a folder": (b'{"weight_map": {"head": "folder"}}', r"folder: tensor 'head': no such file"),
    "a shard with a zero": (b'{"weight_map": {"head": "one\\u0000.safetensors"}}', r"'head': .* same folder"),
    "a shard that is a number": (b'{"weight_map": {"head": 3}}', r"'head': .* same folder, got 3"),
    "a shard of another kind": (b'{"weight_map": {"head": "config.json"}}', r"config\.json: "),
}  # fmt: skip


@pytest.mark.parametrize("lie", INDEX_LIES)
def test_a_lying_index_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    folder, (index, message) = tmp_path / "model", INDEX_LIES[lie]
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
    with pytest.raises(CheckpointError, match=r"config\.json: one name stands twice"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "one.safetensors").write_bytes(safetensors()[:-3])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"head": "one.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"/one\.safetensors: "):
        open_checkpoint(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors: no such file"):
        open_checkpoint(tmp_path / "one.safetensors")


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/gqa-test-bomb-went-off",)


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
    np.savez(buffer, head=np.array([Bomb()], object))
    return buffer.getvalue()


NPZ_LIES = {
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


@pytest.mark.parametrize("lie", NPZ_LIES)
def test_a_lying_npz_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    content, message = NPZ_LIES[lie]
    (tmp_path / "one.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(tmp_path / "one.npz")
    assert not Path("/tmp/gqa-test-bomb-went-off").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.npz").write_bytes(archive(("head.npy", npy((2, 3))), ("head.npy", npy((3, 2)))))
    with pytest.raises(CheckpointError, match="one name stands twice"):
        open_checkpoint(tmp_path / "one.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_of_an_npz_is_noticed(compression: int, tmp_path: Path) -> None:
    """The archive keeps a checksum of each array: the one place where damaged data cannot pass for data."""
    raw = bytearray(archive(("head.npy", npy((2, 3), data=bytes(range(24)))), compression=compression))
    raw[raw.index(bytes(range(5, 20))) if compression == zipfile.ZIP_STORED else 100] ^= 1
    (tmp_path / "one.npz").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"one\.npz: "):
        read_all(tmp_path / "one.npz")


def pickled(content: Any, *, compression: int = zipfile.ZIP_STORED, data: bytes = b"\0" * 24) -> bytes:
    """What torch.save would write for `content`; bytes stand for a pickle of one's own."""
    text = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    members = (("a/data.pkl", text), ("a/byteorder", b"little"), ("a/data/0", data), ("a/version", b"3\n"))
    return archive(*members, compression=compression)


def state(shape: str, stride: str, *, offset: str = "K\x00", count: str = "K\x06") -> bytes:
    """The pickle of {"head": a float32 tensor}, with a shape and strides of one's own as opcodes."""
    storage = "((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + f"0X\x03\0\0\0cpu{count}tQ"
    text = "\x80\x02}X\x04\0\0\0head" + f"ctorch._utils\n_rebuild_tensor_v2\n{storage}{offset}{shape}{stride}"
    return (text + "\x89ccollections\nOrderedDict\n)RtRs.").encode("latin1")


HUGE = "\x8a\x06" + (2**40).to_bytes(6, "little").decode("latin1")


def called(builder: bytes) -> bytes:
    return b"\x80\x02" + builder + HUGE.encode("latin1") + b"\x85R."


TORCH_LIES = {
    "empty": (b"", "one.pt: "),
    "cut": (pickled(state("K\x02K\x03\x86", "K\x03K\x01\x86"))[:-30], "one.pt: "),
    "the format before 1.6": (pickle.dumps({"head": 3}), "one.pt: not the archive that torch.save writes"),
    "a bomb": (pickled({"head": Bomb()}), "the file asks for 'posix.mkdir'"),
    "all memory": (pickled(called(b"cbuiltins\nbytearray\n")), "builtins.bytearray"),
    "a tensor of any size": (pickled(called(b"ctorch\nFloatTensor\n")), "FloatTensor"),
    "globals by other opcodes": (pickled(pickle.dumps({"head": Bomb()}, protocol=4)), "STACK_GLOBAL"),
    "a compressed pickle": (pickled(b"N" * 10**6, compression=zipfile.ZIP_DEFLATED), "expected an archive without"),
    "a number": (pickled({"head": 3}), "one.pt: expected a dictionary of tensors"),
    "a list": (pickled([1]), "one.pt: expected a dictionary of tensors"),
    "a dictionary within itself": (pickled(b"\x80\x02}q\0X\x05\0\0\0modelh\0s."), "expected a dictionary of tensors"),
    "a shape too large": (pickled(state(f"{HUGE}\x85", "K\x01\x85")), "one.pt: "),
    "one number seen 2**40 times": (pickled(state(f"{HUGE}\x85", "K\x00\x85")), "'head': "),
    "a negative shape": (pickled(state("J\xff\xff\xff\xff\x85", "K\x01\x85")), "one.pt: "),
    "a negative stride": (pickled(state("K\x02\x85", "J\xff\xff\xff\xff\x85")), "one.pt: "),
    "an offset outside": (pickled(state("K\x02\x85", "K\x01\x85", offset=HUGE)), "one.pt: "),
    "a storage larger than the file": (pickled(state("K\x02\x85", "K\x01\x85", count=HUGE)), "one.pt: "),
}  # fmt: skip


def test_a_pickle_of_ones_own_is_read_if_it_is_true(tmp_path: Path) -> None:
    """The lies above differ from this one in one place each."""
    numbers = np.arange(6, dtype=np.float32)
    content = pickled(state("K\x02K\x03\x86", "K\x03K\x01\x86"), data=numbers.tobytes())
    (tmp_path / "one.pt").write_bytes(content)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "one.pt")["head"], numbers.reshape(2, 3))


@pytest.mark.parametrize("lie", TORCH_LIES)
def test_a_lying_torch_file_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    content, message = TORCH_LIES[lie]
    (tmp_path / "one.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(tmp_path / "one.pt")
    assert not Path("/tmp/gqa-test-bomb-went-off").exists()


def gguf_with(old: bytes, new: bytes) -> bytes:
    raw = gguf()
    assert raw.count(old) == 1
    return raw.replace(old, new)


def gguf_tensor(dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A GGUF file of one tensor that says this of itself, and of 64 bytes of data."""
    name = struct.pack("<Q", 4) + b"head"
    info = name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    return raw + b"\0" * (-len(raw) % 32) + b"\0" * 64


def gguf_list(length: int, kind: int) -> bytes:
    """A GGUF file whose one field is a list of `length` values, and which ends there."""
    field = struct.pack("<Q", 4) + b"list" + struct.pack("<IIQ", 9, kind, length)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field


GGUF_LIES = {
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
}  # fmt: skip


@pytest.mark.parametrize("lie", GGUF_LIES)
def test_a_lying_gguf_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(GGUF_LIES[lie])
    with pytest.raises(CheckpointError, match=r"one\.gguf: "):
        read_all(tmp_path / "one.gguf")


def test_a_gguf_of_ones_own_is_read_if_it_is_true(tmp_path: Path) -> None:
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


# --- drawn at random -----------------------------------------------------------------------------------------------


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, splices, numbers pushed to their limits; where the structure is, at the start, more often."""
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        where = (
            rng.randrange(max(1, len(content))) if rng.random() < 0.5 else rng.randrange(min(200, len(content)) or 1)
        )
        kind = rng.randrange(7)
        if kind == 0:
            content[where : where + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            content[where : where + 1] = bytes([(content[where] if content else 0) ^ 1 << rng.randrange(8)])
        elif kind == 2:
            del content[where:]
        elif kind == 3:
            other = rng.randrange(max(1, len(content)))
            content[where:where] = content[other : other + rng.randrange(40)]
        elif kind == 4:
            del content[where : where + rng.randrange(1, 40)]
        elif kind == 5:
            size = rng.choice((4, 8))
            content[where : where + size] = rng.choice((0, 1, 2**31, 2**32 - 1, 255)).to_bytes(size, "little")
        else:
            _push_a_number(content, rng)
    return bytes(content)


def _push_a_number(content: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"\d+", bytes(content)))
    if found:
        start, end = rng.choice(found).span()
        content[start:end] = str(rng.choice((0, -1, 1, 3, 2**31, 2**63, 10**30, 1.5))).encode()


def fuzz(form: str, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """How many of `count` damaged files were refused, and how many still read."""
    name, make = SOUND[form]
    rng, refused = random.Random(f"{form} {seed}"), 0
    for number in range(count):
        path = folder / name
        path.write_bytes(damaged(make(), rng))
        try:
            read_all(path)
        except CheckpointError as error:
            if name not in str(error) or "\n" in str(error):
                raise AssertionError(f"file {number} of {form}, seed {seed}: {error}") from error
            refused += 1
        except BaseException as error:  # a panic of a Rust package is no Exception
            raise AssertionError(f"file {number} of {form}, seed {seed}: {error!r}") from error
    return refused, count - refused


def fuzz_folder(whole: Path, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """As `fuzz`, with one file of a folder damaged at a time."""
    rng, refused = random.Random(f"{whole.name} {seed}"), 0
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for number in range(count):
        path, victim = folder / f"{whole.name}.{number}", rng.choice(files)
        shutil.copytree(whole, path)
        (path / victim).write_bytes(damaged((whole / victim).read_bytes(), rng))
        try:
            read_all(path)
        except CheckpointError as error:
            if path.name not in str(error) or "\n" in str(error):
                raise AssertionError(f"folder {number}, {victim} damaged, seed {seed}: {error}") from error
            refused += 1
        except BaseException as error:
            raise AssertionError(f"folder {number}, {victim} damaged, seed {seed}: {error!r}") from error
        shutil.rmtree(path)
    return refused, count - refused


@pytest.mark.parametrize(("form", "count"), [("safetensors", 1000), ("orbax", 150)])
def test_damaged_folders_are_read_or_refused_and_nothing_else(form: str, count: int, tmp_path: Path) -> None:
    given = [(name, TensorInfo(x.shape, x.dtype.name), partial(np.array, x)) for name, x in arrays().items()]
    save_checkpoint(tmp_path / form, given, format=form, settings={"heads": 5}, shard_bytes=100)
    refused, read = fuzz_folder(tmp_path / form, count, 0, tmp_path)
    assert refused > count // 10
    assert read > 0


@pytest.mark.parametrize(
    ("form", "count"),
    [("safetensors", 4000), ("npz", 2000), ("npz_compressed", 1000), ("torch", 1000), ("gguf", 1000)],
)
def test_damaged_files_are_read_or_refused_and_nothing_else(form: str, count: int, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, read = fuzz(form, count, 0, tmp_path)
    assert refused > count // 10, "the damage is too slight to test anything"
    assert read > 0, "the damage is too great to pass the first check"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY

"""What a new checkpoint replaces, what stays, and what is refused before a byte is written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, TensorInfo, atomic, open_checkpoint, save_checkpoint, scratch

pytestmark = pytest.mark.no_shape_checks

INFO = TensorInfo((50,), "float32")


def save(path: Path, value: float, **options: Any) -> None:
    save_checkpoint(path, [("a", INFO, lambda: np.full(50, value, np.float32))], **options)


def value(path: Path) -> float:
    (found,) = set(open_checkpoint(path)["a"].tolist())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what stays ------------------------------------------------------------------------------------------------------

OTHERS = (
    "checkpoint-500/model.safetensors",
    "checkpoint-500/config.json",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.onnx",
    "sub/deep/pytorch_model.bin",
    "adapter_model.safetensors",
    "training_args.bin",
    "optimizer.bin",
    "pytorch_model.bin",
    "tokenizer.json",
    "model.fp16.safetensors",
)


def test_force_replaces_by_name_at_the_top_level_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out, 1.0, settings={"old": 1}, manifest={"old": 1})
    for name in OTHERS:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"mine: {name}")
    (out / "link").symlink_to("tokenizer.json")
    (out / "model-00001-of-00002.safetensors").write_text("a shard of the old one")
    save(out, 2.0, settings={"new": 1}, force=True)
    found = contents(out)
    assert {name: found[name] for name in OTHERS} == {name: f"mine: {name}".encode() for name in OTHERS}
    assert os.readlink(out / "link") == "tokenizer.json"
    assert set(found) - set(OTHERS) == {"config.json", "model.safetensors", "link"}
    assert value(out) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shards_are_not_read_beside_a_whole_file_of_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out, 1.0)
    arrays = [(name, INFO, lambda: np.full(50, 2.0, np.float32)) for name in ("a", "b")]
    save_checkpoint(out, arrays, shard_bytes=200, force=True)
    assert not (out / "model.safetensors").exists()
    assert value(out) == 2.0


def test_mode_and_owner_stay(tmp_path: Path) -> None:
    for name in ("out", "one.safetensors", "one.npz"):
        path = tmp_path / name
        options = {"format": "npz"} if name.endswith("npz") else {}
        save(path, 1.0, **options)
        inside = path / "model.safetensors" if path.is_dir() else path
        inside.chmod(0o640)
        if path.is_dir():
            path.chmod(0o750)
            (path / "sub").mkdir(mode=0o700)
        if os.geteuid() == 0:
            for each in (path, inside, *path.glob("sub")):
                os.chown(each, 1234, 4321)
        save(path, 2.0, force=True, **options)
        assert value(path) == 2.0
        assert stat.S_IMODE(inside.stat().st_mode) == 0o640
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
            assert stat.S_IMODE((path / "sub").stat().st_mode) == 0o700
        if os.geteuid() == 0:
            owners = {(found.st_uid, found.st_gid) for found in (e.stat() for e in (path, inside, *path.glob("sub")))}
            assert owners == {(1234, 4321)}


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    save(tmp_path / "real", 1.0)
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", 2.0, force=True)
    assert (tmp_path / "link").is_symlink()
    assert value(tmp_path / "real") == 2.0


# --- two renames in the place of one exchange ------------------------------------------------------------------------


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and on network file systems."""
    monkeypatch.setattr(atomic, "_exchanged", lambda new, old: False)


@pytest.mark.usefixtures("no_exchange")
def test_two_renames_do_what_one_exchange_does(tmp_path: Path) -> None:
    test_force_replaces_by_name_at_the_top_level_and_nothing_else(tmp_path)


def failing(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """The n-th rename of a folder fails."""
    renames, rename = [0], os.rename

    def counted(a: Any, b: Any) -> None:
        renames[0] += 1
        if renames[0] == number:
            raise error
        rename(a, b)

    monkeypatch.setattr(os, "rename", counted)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_error_between_two_renames_leaves_old_or_new(
    number: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save(out, 1.0)
    (out / "notes.txt").write_text("mine")
    failing(monkeypatch, number, error)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save(out, 2.0, force=True)
    assert value(out) == (2.0 if number == 3 else 1.0)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_exchange")
def test_where_the_old_folder_cannot_be_put_back_it_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, calls = tmp_path / "out", os.rename, []
    save(out, 1.0)

    def broken(a: Any, b: Any) -> None:
        calls.append(a)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(CheckpointError, match=r"out: what was there is now .*\.old: rename it back"):
        save(out, 2.0, force=True)
    monkeypatch.undo()
    (kept,) = tmp_path.iterdir()
    assert value(kept) == 1.0
    with pytest.raises(CheckpointError, match="exists already"):  # the next run puts it back
        save(out, 3.0)
    assert value(out) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_set_aside_beside_a_new_one_is_named_not_removed(tmp_path: Path) -> None:
    save(tmp_path / "out", 1.0)
    (tmp_path / "out").rename(tmp_path / ".out.abcd1234.old")
    save(tmp_path / "new", 2.0)
    (tmp_path / "new").rename(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"\.out\.abcd1234\.old holds what was at .*out before a run that was stopped"):
        save(tmp_path / "out", 3.0, force=True)
    assert value(tmp_path / ".out.abcd1234.old") == 1.0
    assert value(tmp_path / "out") == 3.0


# --- left-overs ------------------------------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys, time
from pathlib import Path
from tests.weights.test_replacing import INFO, np, save_checkpoint
def stop():
    if sys.argv[2] == "wait":
        print("writing", flush=True)
        sys.stdin.readline()
    else:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return np.zeros(50, np.float32)
save_checkpoint(Path(sys.argv[1]), [("a", INFO, lambda: np.ones(50, np.float32)), ("b", INFO, stop)])
"""


def process(path: Path, what: str) -> subprocess.Popen:
    command = [sys.executable, "-c", STOPPED, str(path), what]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", ["out", "one.safetensors"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_what_a_stopped_process_leaves_is_swept_by_the_next(name: str, how: str, tmp_path: Path) -> None:
    with process(tmp_path / name, how):
        pass
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    (tmp_path / f".{name}.other.partial").mkdir()  # not one of ours
    save(tmp_path / name, 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f".{name}.other.partial"])


@pytest.mark.parametrize(("name", "format"), [("out", "safetensors"), ("one.npz", "npz")])
@pytest.mark.parametrize("force", [False, True])
def test_of_two_processes_one_writes_and_the_other_is_refused(
    name: str, format: str, force: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    if force:
        save(path, 1.0, format=format)

    def overtaken() -> np.ndarray:
        """Another process writes the whole path while this one computes."""
        save(path, 2.0, format=format, force=force)
        return np.full(50, 3.0, np.float32)

    with pytest.raises(CheckpointError, match=f"{name}: another process wrote it meanwhile; nothing was written"):
        save_checkpoint(path, [("a", INFO, overtaken)], format=format, force=force)
    assert value(path) == 2.0
    assert [left.name for left in tmp_path.iterdir()] == [name]


def test_a_running_process_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with process(path, "wait") as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == "writing\n"
        (theirs,) = tmp_path.iterdir()
        save(path, 2.0)
        assert theirs.exists()
        running.stdin.write("\n")
        running.stdin.flush()
        assert running.wait() == 1  # it is refused: another one wrote the path
    assert value(path) == 2.0


# --- refused before anything is written ------------------------------------------------------------------------------


def never() -> np.ndarray:
    raise AssertionError("an array was computed, although the place is refused")


def refused(path: Path, message: str, format: str = "safetensors", force: bool = True) -> None:
    before = contents(path) if path.is_dir() else None
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(path, [("a", INFO, never)], format=format, force=force)
    assert before is None or contents(path) == before
    assert not [left for left in path.parent.glob("*") if left.name.endswith((".partial", ".old"))]


def mounted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda asked: Path(asked) == path)


def no_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(a: Any, b: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def across(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(a: Any, b: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)


def little_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def not_mine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdtemp(**options: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", mkdtemp)


PLACES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], str]] = {
    "a mount point": (mounted, "out: a mount point, which cannot be replaced in one step: write to a folder inside it"),
    "no hard links": (no_links, "out: Operation not permitted: its other files cannot be kept in one step: write to a"),
    "another file system inside": (across, "out: Invalid cross-device link: its other files cannot be kept in one"),
    "too little space": (little_space, r"out: needs 200 bytes, the disk has 1,000 free; nothing was written"),
    "no permission": (not_mine, "out: Permission denied; nothing was written"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_cannot_be_replaced_is_refused_first(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = PLACES[case]
    save(tmp_path / "out", 1.0)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    spoil(tmp_path / "out", monkeypatch)
    refused(tmp_path / "out", message)


def test_other_places_that_are_refused_first(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(tmp_path / "a", "a: ")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(tmp_path / "pipe.npz", "pipe.npz: neither a file nor a folder", "npz")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "file: a folder and a file cannot take each other's place")
    refused(tmp_path / "none" / "out", "out: the folder to write it in does not exist", force=False)


@pytest.mark.parametrize("inside", [".", "sub"])
def test_the_current_folder_is_not_replaced(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in it would be in a folder without a name, and lose the relative paths that it was given."""
    out = tmp_path / "out"
    save(out, 1.0)
    (out / "sub").mkdir()
    monkeypatch.chdir(out / inside)
    for path in (out, Path(os.path.relpath(out))):
        refused(path, "the current folder or one above it, which is replaced as a whole")
    monkeypatch.chdir(tmp_path)
    save(Path("out/"), 2.0, force=True)
    save(Path("out/sub/../new/"), 3.0)
    assert (value(out), value(out / "new")) == (2.0, 3.0)


OTHER_USER = """
import os, sys
from tests.weights.test_replacing import INFO, CheckpointError, never, save_checkpoint
os.setgid(65534)
os.setuid(65534)
try:
    save_checkpoint(sys.argv[1], [("a", INFO, never)], force=True)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can take another user's place")
def test_one_user_does_not_replace_the_folder_of_another() -> None:
    """In a folder such as /tmp, where everyone may write and nobody may rename what is another's."""
    place = Path(tempfile.mkdtemp(prefix="gqa-test-", dir="/tmp"))
    try:
        place.chmod(0o1777)
        save(place / "out", 1.0)
        command = [sys.executable, "-c", OTHER_USER, str(place / "out")]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        assert done.stdout == f"{place}/out: Permission denied; nothing was written\n"
        assert value(place / "out") == 1.0
        assert [path.name for path in place.iterdir()] == ["out"]
    finally:
        shutil.rmtree(place)

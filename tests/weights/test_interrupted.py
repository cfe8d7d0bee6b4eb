"""Writing that is stopped: afterwards the path holds the old checkpoint or the new one, whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, pieces, save_checkpoint
from gqa_weights.checkpoint.tensors import Checkpoint

pytestmark = pytest.mark.no_shape_checks

NAMES = {"safetensors": "folder", "npz": "one.npz", "orbax": "tree", "gguf": "one.gguf"}
COUNT = 8


def full(value: float) -> np.ndarray:
    """Numbers from `value` on to the next, which no format can compress away."""
    return (value + np.random.default_rng(0).integers(0, 2**20, (50, 50)) / 2**20).astype(np.float32)


def save(path: Path, value: float, form: str, *, force: bool = False) -> None:
    info = TensorInfo((50, 50), "float32")
    given = [(f"layers.{i}", info, partial(full, value)) for i in range(COUNT)]
    settings = {"value": value, "general.architecture": "llama"}
    save_checkpoint(path, given, format=form, settings=settings, shard_bytes=25_000, force=force)


def value(checkpoint: Checkpoint) -> float:
    """What all of it holds, settings included."""
    (found,) = {float(x) for name in checkpoint for x in np.unique(np.floor(checkpoint[name]))}
    assert len(checkpoint) == COUNT
    assert checkpoint.settings.items() >= {"value": found, "general.architecture": "llama"}.items()
    return found


# For each number n that it reads, it forks a process (before there are threads) that saves and stops itself, with
# SIGKILL, at the n-th of the system calls that change what is on the disk. It prints how the process ended.
STOPPED = """
import os, signal, sys
from pathlib import Path
from tests.weights.test_interrupted import save
CHANGES = {
    "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp",
    "shutil.copytree", "ctypes.dlsym/handle", "ctypes.dlopen",
}
def save_until(number):
    calls = 0
    def counted(event, arguments):
        nonlocal calls
        writes = event == "open" and isinstance(arguments[1], str) and set("wxa") & set(arguments[1])
        if event in CHANGES or writes:
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(counted)
    save(Path(sys.argv[1]), 2.0, sys.argv[2], force=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        save_until(int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def stopping(path: Path, form: str) -> Iterator[Callable[[int], bool]]:
    """A function that saves in a process which is stopped at its n-th change; True if it got that far."""
    command = [sys.executable, "-c", STOPPED, str(path), form]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes) as process:

        def stopped(number: int) -> bool:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield stopped


@pytest.mark.parametrize("form", ["safetensors", "npz", "gguf"])
def test_a_killed_process_leaves_the_old_or_the_new(form: str, tmp_path: Path) -> None:
    path, seen, number = tmp_path / NAMES[form], [], 0
    running = True
    with stopping(path, form) as stopped:
        while running:
            number += 1
            if not path.exists() or value(open_checkpoint(path)) == 2.0:
                save(path, 1.0, form, force=True)
            running = stopped(number)
            seen.append(value(open_checkpoint(path)))
    assert seen[0] == 1.0
    assert seen[-1] == 2.0
    assert sorted(seen) == seen, "once the new one is there, no later stop brings back the old"
    assert len(seen) > 3


@pytest.mark.parametrize("form", NAMES)
def test_a_killed_process_leaves_nothing_under_a_new_name(form: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[form]
    with stopping(path, form) as stopped:
        for number in (2, 3):
            assert stopped(number)
            assert not path.exists()
            assert all(left.name.startswith(f".{path.name}.") for left in tmp_path.iterdir())


@contextmanager
def small_disk(nbytes: int) -> Iterator[None]:
    """No file may grow beyond this: the operating system then reports the same as for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", NAMES)
def test_a_full_disk_is_reported_and_leaves_what_was_there(form: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[form]
    with (
        pytest.raises(CheckpointError, match=f"{path.name}: the disk is full; nothing was written"),
        small_disk(3_000),
    ):
        save(path, 1.0, form)
    assert not list(tmp_path.iterdir())
    save(path, 1.0, form)
    with (
        pytest.raises(CheckpointError, match=f"{path.name}: the disk is full; nothing was written"),
        small_disk(3_000),
    ):
        save(path, 2.0, form, force=True)
    assert value(open_checkpoint(path)) == 1.0
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="folder: Permission denied; nothing was written"):
        save(tmp_path / "folder", 1.0, "safetensors")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none/folder: the folder to write it in does not exist; nothing was"):
        save(tmp_path / "none" / "folder", 1.0, "safetensors")


# --- how much is in memory -----------------------------------------------------------------------------------------


def test_each_tensor_is_made_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two at a time: the next is made while the last pieces of the one before are written."""
    import weakref

    monkeypatch.setattr(pieces, "CHUNK", 1000)  # a tenth of each tensor
    alive: list[weakref.ref] = []

    def make() -> np.ndarray:
        assert len([reference for reference in alive if reference() is not None]) <= 1
        array = full(1.0)
        alive.append(weakref.ref(array))
        return array

    for form, name in NAMES.items():
        info = TensorInfo((50, 50), "float32")
        given = [(f"a{i}", info, make) for i in range(COUNT)]
        save_checkpoint(tmp_path / name, given, format=form, settings={"general.architecture": "llama"})
        assert len(alive) == COUNT
        alive.clear()


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from gqa_weights.checkpoint import TensorInfo, open_checkpoint, save_checkpoint
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
checkpoint = open_checkpoint(sys.argv[1])
before = anonymous()
kept = [checkpoint[name] for name in checkpoint]
assert sum(float(array[::1024].sum()) for array in kept) == 0
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the figure is read from Linux's /proc")
def test_a_mapped_file_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """All of it read and kept: 64 MiB stay the disk's."""
    zeros = np.zeros(2**22, np.float32)
    info = TensorInfo(zeros.shape, "float32")
    save_checkpoint(tmp_path / "one.safetensors", [(f"a{i}", info, lambda: zeros) for i in range(4)])
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "one.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert grown < zeros.nbytes

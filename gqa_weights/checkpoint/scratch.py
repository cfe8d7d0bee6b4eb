"""Temporary folders beside a destination: made, locked while their process runs, and swept when it was stopped."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there, and so nothing is swept
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD = ".partial", ".old"  # what is being written, and what is set aside between two renames
TOKEN = re.compile(r"[a-z0-9_]{8}")  # what tempfile puts between a name and a suffix


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, removed at the end. Those that stopped processes left there are removed first."""
    for left in _left(target, PARTIAL):
        _sweep(left)
    path, handle = _new(target)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def aside_of(scratch: Path) -> Path:
    """Where the old folder waits between two renames: outside of the scratch folder, which is always removed."""
    return scratch.with_suffix(OLD)


def recover(target: Path) -> None:
    """Put a folder back that a process set aside before it was stopped between two renames."""
    for left in _left(target, OLD):
        if not os.path.lexists(target):
            os.rename(left, target)
        else:
            warnings.warn(
                f"{left} holds what was at {target} before a run that was stopped: delete it unless you need it",
                stacklevel=2,
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system can lock."""
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _left(target: Path, suffix: str) -> list[Path]:
    start = f".{target.name}."
    names = (name for name in os.listdir(target.parent) if name.startswith(start) and name.endswith(suffix))
    return [target.parent / name for name in names if TOKEN.fullmatch(name[len(start) : -len(suffix)])]


def _new(target: Path) -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
        try:
            handle = _lock(path, wait=False)
            if handle is None or os.path.samestat(os.fstat(handle), os.stat(path)):
                return path, handle
            os.close(handle)
        except (BlockingIOError, FileNotFoundError):
            pass  # another process swept it before it was locked: make another one


def _sweep(left: Path) -> None:
    try:
        handle = _lock(left, wait=False)
    except (BlockingIOError, FileNotFoundError):
        return  # its process is running, or another one sweeps it
    if handle is not None:
        shutil.rmtree(left, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    """An open handle that holds the lock; None where there are no locks. BlockingIOError where another holds it."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle

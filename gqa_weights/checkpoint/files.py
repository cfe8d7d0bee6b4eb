"""Which files are read: regular ones, inside the folder of a checkpoint. And parts of them as arrays."""

from __future__ import annotations

import io
import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gqa_weights.checkpoint.tensors import Array, refuse

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def is_file(path: Path, *, within: Path | None = None) -> bool:
    """Whether there is a regular file, links followed; False if there is nothing of that name.

    Args:
        path: The file.
        within: The folder that a link must not lead out of. From a snapshot of Hugging Face's cache it may lead to the
            cache's blobs.

    Raises:
        CheckpointError: For a pipe, a device, a folder, a link to nothing, a loop of links, a link to elsewhere.
    """
    if not os.path.lexists(path):
        return False
    try:
        mode = path.stat().st_mode
        resolved = path.resolve()
    except FileNotFoundError as error:
        target = os.readlink(path)
        remedy = ": run `git annex get`" if "annex/objects" in target else ""
        raise refuse(path, None, f"a link to {target!r}, which does not exist{remedy}") from error
    except (OSError, RuntimeError) as error:  # a loop is either
        raise refuse(path, None, "a loop of links" if path.is_symlink() else str(error)) from error
    if not stat.S_ISREG(mode):
        raise refuse(path, None, f"expected a file, got {KINDS.get(stat.S_IFMT(mode), 'something else')}")
    if within is not None and not _inside(resolved, within.resolve()):
        raise refuse(path, None, f"a link to {str(resolved)!r}, outside of the folder: copy the file, or give it alone")
    return True


def _inside(target: Path, folder: Path) -> bool:
    blobs = folder.parent.parent / "blobs"
    return target.is_relative_to(folder) or (folder.parent.name == "snapshots" and target.is_relative_to(blobs))


class _Raw(io.FileIO):
    def __del__(self) -> None:
        self.close()


class _KeptOpen(io.BufferedReader):
    def __del__(self) -> None:
        self.close()


def kept_open(path: Path) -> BinaryIO:
    """A file that later reads come from, whatever has its name by then. It is closed when nothing refers to it."""
    return _KeptOpen(_Raw(path))


def mapped(file: BinaryIO, start: int, nbytes: int) -> Array:
    """Bytes of a file as a private mapping: writable, and no memory of its own until it is written to."""
    if not nbytes:
        return np.empty(0, np.uint8)
    before = start % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(file.fileno(), before + nbytes, access=mmap.ACCESS_COPY, offset=start - before)
    if hasattr(mmap, "MADV_WILLNEED"):  # the disk reads ahead, in any order of access
        mapping.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapping, np.uint8, nbytes, before)


def viewed(data: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    """Bytes as numbers; copied where they are not aligned."""
    aligned = data.ctypes.data % np.dtype(dtype).itemsize == 0
    return (data if aligned else np.array(data)).view(dtype).reshape(shape)

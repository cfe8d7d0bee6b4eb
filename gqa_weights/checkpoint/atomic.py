"""A file or folder that appears or changes in one step, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gqa_weights.checkpoint.tensors import CheckpointError, refuse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WEIGHTS = (  # what makes a folder a checkpoint, and is not kept when another takes its place
    *("config.json", "params.json", "gqa_manifest.json", "*.safetensors", "*.index.json", "*.bin", "*.pth"),
    *("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "manifest.ocdbt", "ocdbt.process_*", "d", "array_metadatas"),
    *("commit_success.txt",),
)


@contextmanager
def replacing(path: Path, force: bool) -> Iterator[Path]:
    """A path to write a file or a folder to, in a temporary folder beside `path`, which takes its place at the end."""
    _check_free(path, force)
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.resolve().parent))
        new = scratch / path.name
        yield new
        _check_free(path, force)
        if path.is_dir() != new.is_dir() and path.exists():
            raise refuse(path, None, "a folder and a file cannot take each other's place")
        _put(new, path.resolve())
    except OSError as error:
        reason = "the disk is full" if error.errno in FULL else error.strerror or str(error)
        raise CheckpointError(f"{path}: {reason}; nothing was written") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise refuse(path, None, "exists already; give force (--force) to overwrite it")
    if not path.resolve().parent.is_dir():
        raise refuse(path, None, "the folder to write it in does not exist; nothing was written")
    if path.is_dir() and any(path.iterdir()) and not any(True for name in WEIGHTS for _ in path.glob(name)):
        raise refuse(path, None, "a folder that holds files but no checkpoint is not overwritten")


def _put(new: Path, path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        ignore = shutil.ignore_patterns(*WEIGHTS)
        shutil.copytree(path, new, copy_function=os.link, ignore=ignore, symlinks=True, dirs_exist_ok=True)
        sync(new)
        _exchange(new, path)
    else:
        if new.is_dir():
            sync(new)
        os.replace(new, path)
    sync(path.parent)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders. Only Linux can in one step; elsewhere a stop between the two renames leaves the old folder
    complete under the temporary name.
    """
    try:
        here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), swap) == 0:
            return
    except AttributeError:
        pass
    os.rename(old, new.with_name(f"{new.name}.old"))
    os.rename(new, old)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A file or folder that appears or changes in one step, or not at all. What cannot be done is refused at the start."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gqa_weights.checkpoint.scratch import aside_of, locked, recover, scratch_folder
from gqa_weights.checkpoint.tensors import CheckpointError, refuse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SPARE = 2**20  # bytes for settings and folders, beside those of the tensors
# Top-level names that a new checkpoint replaces even where it has no file of that name: a reader would take them, which
# are the old checkpoint's, instead of its own. All other files stay.
REPLACED = re.compile(
    r"(config|params|gqa_manifest)\.json|model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors"
)
# What makes a folder a checkpoint, which force may change.
CHECKPOINT = ("config.json", "params.json", "gqa_manifest.json", "*.safetensors", "*.bin", "*.pth", "*_METADATA")


@contextmanager
def replacing(path: Path, *, force: bool, folder: bool, nbytes: int) -> Iterator[Path]:
    """A path to write a new file or folder of `nbytes` to, which takes the place of `path` at the end."""
    with ready(path, force=force, folder=folder, nbytes=nbytes) as (target, scratch):
        before, new = _identity(target), scratch / target.name
        yield new
        with locked(target.parent):
            if _identity(target) != before:
                raise refuse(path, None, "another process wrote it meanwhile; nothing was written")
            _put(new, target, scratch)


@contextmanager
def ready(path: Path, *, force: bool, folder: bool, nbytes: int) -> Iterator[tuple[Path, Path]]:
    """What `path` is, links followed, and a scratch folder beside it, once everything that can be refused was not."""
    with _one_sentence(path):
        target = _resolved(path)
        _check_place(path, target, folder, nbytes)
        recover(target)
        _check_free(path, target, force)
        with scratch_folder(target) as scratch:
            if folder:
                _check_kept(path, target, scratch)
            yield target, scratch


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in FULL else error.strerror or str(error)
        raise CheckpointError(f"{path}: {reason}; nothing was written") from error


# --- what is refused before anything is written ----------------------------------------------------------------------


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # Python 3.11 and 3.12 for a loop
        raise refuse(path, None, "a loop of links; nothing was written") from error


def _check_place(path: Path, target: Path, folder: bool, nbytes: int) -> None:
    parent = target.parent
    if not parent.is_dir():
        raise refuse(path, None, "the folder to write it in does not exist; nothing was written")
    if os.path.lexists(target) and target.is_dir() != folder:
        raise refuse(path, None, "a folder and a file cannot take each other's place")
    if os.path.lexists(target) and not (target.is_dir() or target.is_file()):
        raise refuse(path, None, "neither a file nor a folder, so it is not overwritten")
    if folder and target.is_dir() and Path.cwd().is_relative_to(target):  # a shell would be left in no folder
        raise refuse(path, None, "the current folder or one above it, which is replaced as a whole: run it elsewhere")
    if target in _mount_points() or os.path.ismount(target):
        raise refuse(path, None, "a mount point, which cannot be replaced in one step: write to a folder inside it")
    free = shutil.disk_usage(parent).free
    if nbytes + SPARE > free:
        raise refuse(path, None, f"needs {nbytes:,} bytes, the disk has {free:,} free; nothing was written")


def _check_free(path: Path, target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise refuse(path, None, "exists already; give force (--force) to overwrite it")
    if target.is_dir() and any(target.iterdir()) and not any(True for name in CHECKPOINT for _ in target.glob(name)):
        raise refuse(path, None, "a folder that holds files but no checkpoint is not overwritten")
    parent, old = target.parent.stat(), target.stat()
    kept_by_owner = parent.st_mode & stat.S_ISVTX and os.geteuid() not in (0, parent.st_uid, old.st_uid)
    if kept_by_owner or (target.is_dir() and not os.access(target, os.W_OK)):
        raise refuse(path, None, "Permission denied; nothing was written")


def _check_kept(path: Path, target: Path, scratch: Path) -> None:
    """Try to link all files that stay: it fails on file systems without hard links and for folders mounted inside."""
    trial = scratch / "kept"
    trial.mkdir()
    if target.is_dir():
        try:
            _keep(target, trial)
        except OSError as error:
            why = error.strerror or str(error)
            remedy = "its other files cannot be kept in one step: write to a new folder; nothing was written"
            raise refuse(path, None, f"{why}: {remedy}") from error
    shutil.rmtree(trial)


def _mount_points() -> set[Path]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4])) for line in lines}


def _identity(target: Path) -> tuple[int, ...] | None:
    """Changes when another file or folder takes the place; not when a file is put into a folder."""
    if not os.path.lexists(target):
        return None
    found = target.stat()
    return (found.st_dev, found.st_ino, *(() if target.is_dir() else (found.st_mtime_ns,)))


# --- the one step ----------------------------------------------------------------------------------------------------


def _put(new: Path, target: Path, scratch: Path) -> None:
    if not new.is_dir():
        _put_file(new, target)
    elif target.is_dir() and any(target.iterdir()):
        _keep(target, new)
        sync(new)
        exchange(new, target, scratch)
    else:
        if target.is_dir():
            _same_access(target, new)
        sync(new)
        os.rename(new, target)
    sync(target.parent)


def _put_file(new: Path, target: Path) -> None:
    if target.exists():
        _same_access(target, new)
        os.replace(new, target)
        return
    try:
        os.link(new, target)  # which fails where another process was faster, as a rename would not
    except FileExistsError:
        raise
    except OSError:
        os.rename(new, target)


def _keep(old: Path, new: Path) -> None:
    """Link what the new folder does not replace into it, and give it the access rights of the old one."""
    for entry in os.scandir(old):
        inside = new / entry.name
        if os.path.lexists(inside):
            if entry.is_file(follow_symlinks=False) and inside.is_file():
                _same_access(Path(entry), inside)
        elif not REPLACED.fullmatch(entry.name):
            _link(Path(entry), inside)
    _same_access(old, new)


def _link(old: Path, new: Path) -> None:
    if old.is_symlink():
        os.symlink(os.readlink(old), new)
    elif old.is_dir():
        new.mkdir()
        for entry in os.scandir(old):
            _link(Path(entry), new / entry.name)
        _same_access(old, new)
        shutil.copystat(old, new)
        sync(new)
    else:
        os.link(old, new)


def _same_access(old: Path, new: Path) -> None:
    """Mode, and owner as far as this user may give it."""
    found, mine = old.stat(), new.stat()
    if (found.st_uid, found.st_gid) != (mine.st_uid, mine.st_gid):
        with suppress(PermissionError):
            os.chown(new, found.st_uid, found.st_gid)
    os.chmod(new, stat.S_IMODE(found.st_mode))


def exchange(new: Path, old: Path, scratch: Path) -> None:
    """Swap two folders: in one step on Linux, else by two renames, of which the first is undone if the second fails."""
    if _exchanged(new, old):
        return
    aside = aside_of(scratch)
    try:
        os.rename(old, aside)
        os.rename(new, old)
        os.rename(aside, new)  # into the scratch folder, which is removed
    except BaseException as error:
        if os.path.lexists(aside):
            _roll_back(aside, old if not os.path.lexists(old) else new, error)
        raise


def _roll_back(aside: Path, place: Path, error: BaseException) -> None:
    try:
        os.rename(aside, place)
    except OSError:
        raise CheckpointError(f"{place}: what was there is now {aside}: rename it back ({error})") from error


def _exchanged(new: Path, old: Path) -> bool:
    """Whether the system could: renameat2(2) with RENAME_EXCHANGE, of Linux and most of its file systems."""
    here, swap = -100, 2
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), swap) == 0
    except AttributeError:
        return False


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

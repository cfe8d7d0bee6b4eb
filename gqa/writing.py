"""What the commands that write a checkpoint share: the plan is checked, written and reported."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.lines import show
from gqa.outputs import STDOUT, check_files, check_new, list_written, write_json

if TYPE_CHECKING:
    from gqa_weights.port import Plan

# Of the manifest, what fits a line.
STATED = ("num_heads", "num_kv_heads", "head_dim", "pairing", "head_order", "fused", "scale", "qk_norm", "window")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Writing:
    """The options of a command that writes."""

    dest: Path
    force: bool
    shard_size: str | None
    checksums: bool
    dry_run: bool
    json: Path | None

    def run(self, plan: Callable[[], Plan], task: str) -> None:
        """Refuse what cannot be written, then plan, write (not with --dry-run) and report."""
        check_new("DEST", self.dest, self.force)
        check_files({"--json": self.json})
        shard_bytes = _bytes(self.shard_size)
        from gqa.progress import bytes_bar
        from gqa_weights.port import check, write

        planned = plan()
        if self.dry_run:
            check(planned, self.dest, force=self.force)
        else:
            with _removed_on_sigterm(), bytes_bar(task, planned.nbytes) as advance:
                write(
                    planned,
                    self.dest,
                    force=self.force,
                    shard_bytes=shard_bytes,
                    checksums=self.checksums,
                    done=advance,
                )
        found = self._found(planned, shard_bytes)
        if self.json != STDOUT:
            self._print(planned, found)
        if self.json is not None:
            write_json(self.json, found)
        list_written(None if self.dry_run else self.dest, self.json)

    def _found(self, planned: Plan, shard_bytes: int | None) -> dict[str, Any]:
        from gqa_weights.checkpoint.save import shard_names
        from gqa_weights.port import files_at

        carried = sorted(files_at(planned, self.dest))
        left = sorted(set(planned.files) - set(carried))
        return {
            "path": str(self.dest),
            "bytes": planned.nbytes,
            "weights": shard_names(planned.tensors, self.dest, shard_bytes),
            "carried": carried,
            "notes": [*planned.notes, *([f"a single file has no place for {', '.join(left)}"] if left else [])],
            "dry_run": self.dry_run,
            "free_bytes": shutil.disk_usage(self.dest.resolve().parent).free,
            "manifest": planned.manifest,
        }

    def _print(self, planned: Plan, found: dict[str, Any]) -> None:
        size = f"{len(planned.tensors)} tensors, {planned.nbytes:,} bytes in {len(found['weights'])} files"
        show(f"{planned.manifest['layout']}, {size}")
        for layers in planned.manifest["attention"]:
            stated = ", ".join(f"{name} {layers[name]}" for name in STATED if layers[name])
            show(f"{len(layers['layers'])} layers: {stated}")
        if found["carried"]:
            show(f"carried along: {', '.join(found['carried'])}")
        for note in found["notes"]:
            show(f"note: {note}")
        if self.dry_run:
            show(f"dry run: nothing was written; the disk has {found['free_bytes']:,} bytes free")
        elif self.dest.is_dir():
            show(f"every convention is in {self.dest / 'gqa_manifest.json'}")


def _bytes(size: str | None) -> int | None:
    """ "5GB" -> 5 * 10**9."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d{1,15})\s*([A-Z]*)", size.strip().upper())
    if found is None or found[2] not in UNITS or int(found[1]) < 1:
        raise ValueError(f"--shard-size: expected a number of bytes such as 5GB or 500MB, got {size!r}")
    return int(found[1]) * UNITS[found[2]]


@contextmanager
def _removed_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the command after what it has written so far is removed."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

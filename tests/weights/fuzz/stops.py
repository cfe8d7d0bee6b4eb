"""Writing that is stopped or fails at every call of the system: old or new whole, and nothing else touched.

python -m tests.weights.fuzz.stops --count 1000: each case is a process of its own, forked before there are threads.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gqa_weights.checkpoint import CheckpointError, TensorInfo, atomic, open_checkpoint, save_checkpoint

CALLS = ("rename", "replace", "link", "mkdir", "fsync", "open", "symlink", "rmdir", "unlink", "chmod")
FORMS = {"folder": {}, "shards": {"shard_bytes": 500}, "one.safetensors": {}, "one.npz": {"format": "npz"}}
ACTIONS = ("SIGKILL", "SIGTERM", "OSError", "KeyboardInterrupt")
OTHERS = {"notes.txt": "mine", "checkpoint-500/model.safetensors": "mine too", "adapter_model.safetensors": "and this"}


def main(count: Annotated[int, typer.Option(help="Cases, at most.")] = 1000) -> None:
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="gqa-stops-") as name:
        for number, case in zip(range(count), _cases(Path(name)), strict=False):
            done[case] += 1
            if number % 200 == 199:
                typer.echo(f"{number + 1}: {dict(done)}")
    typer.echo(f"{sum(done.values())} cases: {dict(done)}")
    raise typer.Exit(1 if any(key.startswith("wrong") for key in done) else 0)


def _cases(base: Path) -> Iterator[str]:
    """Every call in turn, of every form, in every way, until the saving is over before it is reached."""
    ways = list(product(FORMS, ACTIONS, ("before", "after"), (True, False)))
    number = 0
    while ways:
        number += 1
        for way in list(ways):
            form, action, when, exchange = way
            folder = base / f"{number}"
            outcome, reached = _case(folder, form, number, action, when, exchange)
            if not reached:
                ways.remove(way)
                continue
            if outcome.startswith("wrong"):
                typer.echo(f"{form}, call {number}, {action} {when}, exchange {exchange}: {outcome}")
            yield outcome


def save(path: Path, value: float, force: bool = True) -> None:
    info = TensorInfo((50,), "float32")
    given = [(f"a{i}", info, lambda: np.full(50, value, np.float32)) for i in range(5)]
    settings = {"value": value}
    save_checkpoint(path, given, settings=settings, manifest=settings, checksums=True, force=force, **FORMS[path.name])


def value(path: Path) -> float:
    checkpoint = open_checkpoint(path)
    (found,) = {float(x) for name in checkpoint for x in np.unique(checkpoint[name])}
    assert len(checkpoint) == 5
    assert checkpoint.settings == {"value": found}
    return found


def _case(base: Path, form: str, number: int, action: str, when: str, exchange: bool) -> tuple[str, bool]:
    with tempfile.TemporaryDirectory(prefix="case-", dir=base.parent) as name:
        path = Path(name) / form
        (Path(name) / "beside.txt").write_text("beside")
        save(path, 1.0)
        if path.is_dir():
            for other, text in OTHERS.items():
                (path / other).parent.mkdir(exist_ok=True)
                (path / other).write_text(text)
        child = os.fork()
        if not child:
            _stopped(path, number, action, when, exchange)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            return _judged(path), code != 0
        except (AssertionError, CheckpointError, OSError) as error:
            return f"wrong: {error!r}", code != 0


def _judged(path: Path) -> str:
    """Old or new; then the next saving puts back what was set aside, and sweeps what is left."""
    found = "aside"
    if path.exists():
        found = "old" if value(path) == 1.0 else "new"
        _check_others(path)
    else:
        assert list(path.parent.glob(f".{path.name}.*.old")), "neither old nor new"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(path, 3.0)
    assert value(path) == 3.0
    _check_others(path)
    left = {other.name for other in path.parent.iterdir()} - {path.name, "beside.txt"}
    assert not [name for name in left if name.endswith(".partial")], left
    assert (path.parent / "beside.txt").read_text() == "beside"
    return found


def _check_others(path: Path) -> None:
    if path.is_dir():
        for other, text in OTHERS.items():
            assert (path / other).read_text() == text, other


def _stopped(path: Path, number: int, action: str, when: str, exchange: bool) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    calls = [0]

    def act() -> None:
        if action.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, action))
        raise OSError(errno.EIO, "Input/output error") if action == "OSError" else KeyboardInterrupt

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] != number:
                return call(*arguments, **options)
            if when == "before":
                act()
            result = call(*arguments, **options)
            act()
            return result

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    if not exchange:
        atomic._exchanged = lambda new, old: False
    try:
        save(path, 2.0)
    except BaseException:
        os._exit(3)
    os._exit(0 if calls[0] < number else 4)


if __name__ == "__main__":
    sys.exit(typer.run(main))

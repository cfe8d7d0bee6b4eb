"""python -m tests.weights.fuzz: damage sound checkpoints, give them to the command, report what it did wrong."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.weights.fuzz.judge import judge
from tests.weights.fuzz.mutations import mutate
from tests.weights.fuzz.sources import SOURCES, huggingface

SECONDS, MEMORY = 5, 2**29  # of the processor, and bytes of growth, for one damaged checkpoint
HUNG = 60  # seconds of the clock: other work may share the machine
BATCH = 250  # files of one process: a crash ends it, and the next starts afresh

app = typer.Typer(add_completion=False)


@app.command()
def fuzz(
    count: Annotated[int, typer.Option(help="Damaged checkpoints of each format.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed gives other damage.")] = 0,
    form: Annotated[list[str] | None, typer.Option(help="Of these formats only.")] = None,
) -> None:
    """Damage sound checkpoints of every format, and report each that is neither read right nor refused well."""
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="gqa-fuzz-") as name:
        _worker(["make", name])
        for start in range(0, count, BATCH):
            for source in form or SOURCES:
                totals += _batch(name, source, start, min(count, start + BATCH), seed)
                typer.echo(f"{source} to {min(count, start + BATCH)}, all so far: {dict(sorted(totals.items()))}")
    raise typer.Exit(1 if any(key.startswith("wrong") for key in totals) else 0)


def _worker(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "tests.weights.fuzz", *arguments], check=True)


def _batch(base: str, source: str, start: int, stop: int, seed: int) -> Counter[str]:
    """In a process of its own, which prints its outcomes."""
    totals: Counter[str] = Counter()
    command = [sys.executable, "-m", "tests.weights.fuzz", "run", base, source, str(start), str(stop), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            number, _, outcome = line.rstrip("\n").partition(" ")
            start = int(number) + 1
            totals[outcome.split(":")[0]] += 1
            if outcome.startswith("wrong"):
                typer.echo(f"{source} seed {seed} number {number}: {outcome}")
    if process.returncode:
        totals["wrong crash"] += 1
        typer.echo(f"{source} seed {seed} number {start}: the process ended with {process.returncode}")
        if start + 1 < stop:
            totals += _batch(base, source, start + 1, stop, seed)
    return totals


@app.command()
def make(base: Path) -> None:
    """The sound checkpoints."""
    huggingface(base / "source")
    for source, (write, name) in SOURCES.items():
        (base / source).mkdir()
        write(base / source, base / "source")
        outcomes = judge(base / source / name, base / "dest")
        assert outcomes[:2] == ("read", "read"), (source, outcomes)


@app.command()
def run(base: Path, source: str, start: int, stop: int, seed: int) -> None:
    """Some of one format, each outcome as a line on stdout."""
    outcomes = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    judge(base / source / SOURCES[source][1], base / f"dest_{source}")  # loads everything
    for number in range(start, stop):
        outcomes.write(f"{number} {_one(base, source, number, seed)}\n")
        outcomes.flush()


def _one(base: Path, source: str, number: int, seed: int) -> str:
    rng = random.Random(f"{source} {seed} {number}")
    folder = base / f"{source}.{number}"
    shutil.copytree(base / source, folder)
    damaged = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    kind = mutate(damaged, rng)
    before, start = _memory(reset=True), time.process_time()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(HUNG)
    try:
        outcomes = judge(folder / SOURCES[source][1], base / f"dest_{source}")
        taken, grown = time.process_time() - start, _memory() - before
        if taken > SECONDS or grown > MEMORY:
            return f"wrong: {damaged.name} {kind}: {taken:.1f} s, {grown >> 20} MiB"
        return outcomes[1]
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(c if c.isprintable() else "?" for c in f"{error!r}"[:600])
        return f"wrong: {damaged.name} {kind}: {text} at {Path(place.filename).name}:{place.lineno}"
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {HUNG} s")


def _memory(reset: bool = False) -> int:
    """The peak of resident memory since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] in (["make"], ["run"]):
        app()
    else:
        app(["fuzz", *sys.argv[1:]])

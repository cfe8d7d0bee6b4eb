"""A process of its own for a target: it may hang, crash or spoil the process, and the run goes on.

The process imports the target once and then does one job after the other. A job is a generator; every value that it
yields must come within the time limit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from conformance.targets.frameworks import keep_compiled, quick_to_compile
from conformance.targets.limits import Limits
from conformance.targets.protocol import NotATarget
from conformance.targets.public import find_target
from conformance.targets.recognise import recognise
from conformance.targets.table import PUBLIC

Job = Callable[..., Iterator[Any]]
FIRST_CALL = 60.0  # seconds for the calls of `recognise`, which may compile
LOADING = 120.0  # seconds for an import; torch, jax and keras together take 10 on two loaded cores


class Stopped(Exception):
    """The process did not answer in time, or ended."""


@dataclass
class Worker:
    """path, arrays, changes: as `find_target` takes them. limit: seconds for each value of a job. Once it has started:
    kind, "class", "function", "packed" or "paged"; framework, whose arrays it takes; limits; notes of what it does.
    """

    path: str
    arrays: str | None = None
    limit: float = 30.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    process: BaseProcess | None = field(default=None, init=False)
    pipe: Any = field(default=None, init=False)
    kind: str = field(default="", init=False)
    framework: str = field(default="", init=False)
    limits: Limits = field(default_factory=Limits, init=False)
    notes: tuple[str, ...] = field(default=(), init=False)

    def __enter__(self) -> Worker:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def do(self, job: Job, *arguments: Any) -> Iterator[Any]:
        """What `job(target, *arguments)` yields. Raises Stopped with one sentence; the next job has a new process."""
        if self.process is None:
            self._start()
        try:
            self.pipe.send((job, arguments))
        except OSError:
            raise Stopped(self._died()) from None
        while True:
            kind, value = self._receive(self.limit)
            if kind == "done":
                return
            if kind == "error":
                raise value
            yield value

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self.path, self.arrays, dict(self.changes)), daemon=True
        )
        self.process.start()
        theirs.close()
        for stage, limit in (("its import", LOADING), ("its first call", max(self.limit, FIRST_CALL))):
            try:
                kind, answer = self._receive(limit)
            except Stopped as error:
                raise NotATarget(f"target {self.path}: {stage} {error}") from error
            if kind == "none":
                self._end()
                raise NotATarget(answer)
        self.kind, self.framework, self.limits, self.notes = answer

    def _receive(self, limit: float) -> tuple[str, Any]:
        try:
            if self.pipe.poll(limit):
                received: tuple[str, Any] = self.pipe.recv()
                return received
        except (EOFError, OSError):
            raise Stopped(self._died()) from None
        self._end()
        raise Stopped(f"did not answer within {limit:g} s")

    def _died(self) -> str:
        process = self.process
        if process is not None:
            process.join(5)
        code = None if process is None else process.exitcode
        self._end()
        return f"ended its process with exit code {code}"

    def stop(self) -> None:
        """From another thread: what waits for the process gets Stopped."""
        if self.process is not None:
            self.process.kill()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


def _serve(pipe: Connection, path: str, arrays: str | None, changes: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends this process
    quick_to_compile()
    try:
        target = find_target(path, arrays, changes)
        keep_compiled()
        pipe.send(("imported", None))
        if path not in PUBLIC:
            target = recognise(target)
    except NotATarget as error:
        pipe.send(("none", str(error)))
        return
    pipe.send(("ready", (target.kind, target.framework.name, target.limits, target.notes)))
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            for value in job(target, *arguments):
                pipe.send(("value", value))
            pipe.send(("done", None))
        except Exception as error:
            pipe.send(("error", RuntimeError(f"{type(error).__name__}: {error}")))

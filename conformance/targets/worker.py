"""A process of its own for a target: it may hang, crash or spoil the process, and the run goes on.

The process imports the target once and then does one job after the other. A job is a generator; every value that it
yields must come within the time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from conformance.targets.callables import TargetClass
from conformance.targets.frameworks import keep_compiled, quick_to_compile
from conformance.targets.protocol import NotATarget
from conformance.targets.public import find_target

Job = Callable[..., Iterator[Any]]
LOADING = 120.0  # seconds for an import; torch, jax and keras together take 10 on two loaded cores


class Stopped(Exception):
    """The process did not answer in time, or ended."""


@dataclass
class Worker:
    """path and arrays: as `find_target` takes them. limit: seconds for each value of a job."""

    path: str
    arrays: str | None = None
    limit: float = 30.0
    process: BaseProcess | None = field(default=None, init=False)
    pipe: Any = field(default=None, init=False)
    kind: str = field(default="", init=False)  # "class" or "function", once it has started
    framework: str = field(default="", init=False)  # whose arrays it takes

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
        self.process = context.Process(target=_serve, args=(theirs, self.path, self.arrays), daemon=True)
        self.process.start()
        theirs.close()
        try:
            kind, answer = self._receive(LOADING)
        except Stopped as error:
            raise NotATarget(f"target {self.path}: its import {error}") from error
        if kind == "none":
            self._end()
            raise NotATarget(answer)
        self.kind, self.framework = answer

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

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


def _serve(pipe: Connection, path: str, arrays: str | None) -> None:
    quick_to_compile()
    try:
        target = find_target(path, arrays)
    except NotATarget as error:
        pipe.send(("none", str(error)))
        return
    keep_compiled()
    kind = "class" if isinstance(target, TargetClass) else "function"
    pipe.send(("ready", (kind, target.framework.name)))
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

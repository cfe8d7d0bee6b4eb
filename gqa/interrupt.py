"""Ctrl-C: the command ends within a second, with one sentence, and its child processes end silently."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import resource_tracker

AT_MOST = 0.6  # seconds for the main thread to end by itself: clean-up of half-written files comes first
EXIT_CODE = 128 + signal.SIGINT
_blocking = threading.Event()


def end_on_interrupt(command: str) -> None:
    """Before anything else, in the main thread.

    SIGINT stays blocked, here and in all threads and processes that are started later, so no child prints a traceback.
    One thread waits for it, ends the children and wakes the main thread by another signal.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    _blocking.set()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGUSR1, _raise)
    stderr = os.dup(2)  # a progress bar redirects the other
    threading.Thread(target=_wait, args=(threading.get_ident(), command, stderr), daemon=True).start()


def silence_children() -> None:
    """Before the first child process. multiprocessing starts a process of its own with it, then unblocks SIGINT."""
    if _blocking.is_set():
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def sentence(command: str) -> str:
    return f"{command}: interrupted, not finished"


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def _wait(main_thread: int, command: str, stderr: int) -> None:
    signal.sigwait({signal.SIGINT})
    signal.pthread_kill(main_thread, signal.SIGUSR1)
    end = time.monotonic() + AT_MOST
    while time.monotonic() < end:  # a thread that is not the main one may start a child again
        _end_children()
        time.sleep(0.05)
    if os.isatty(stderr):
        os.write(stderr, b"\x1b[?25h\r\x1b[K")  # a progress bar hides the cursor
    os.write(stderr, f"{sentence(command)}\n".encode())
    _end_children()
    os._exit(EXIT_CODE)


def _end_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()

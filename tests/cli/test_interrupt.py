"""Ctrl-C, as a terminal sends it: to the command and all of its children at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.no_shape_checks,
    pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no signal masks"),
]
COMMANDS = {"conform": ("--synthetic",), "study": ("perplexity", "--quick", "--folder", ".")}
LIMIT = 3.0  # seconds; it takes 0.3 to 0.7 on an idle machine


def children(group: int) -> int:
    """How many processes of the group run; those that have ended and wait for their parent are not counted."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += process_group == str(group) and state != "Z"
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are counted in /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_everything_with_one_sentence(command, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "gqa", command, *COMMANDS[command]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[:1]])},
    )
    end = time.monotonic() + 30
    while command == "conform" and children(process.pid) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - start < LIMIT
    assert process.returncode == 130
    assert (stdout, stderr) == ("", f"gqa {command}: interrupted, not finished\n")
    end = time.monotonic() + LIMIT
    while children(process.pid) and time.monotonic() < end:  # multiprocessing's own process ends when its pipe does
        time.sleep(0.05)
    assert children(process.pid) == 0

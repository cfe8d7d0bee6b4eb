"""How fast a large checkpoint is ported, and in how much memory, against `cp` of the same files in the same run.

The checkpoint is made here: a Llama of the sizes of Llama 3 8B, but for a small feed-forward and vocabulary, so that
nearly all bytes are attention's, in bfloat16 and in shards. It is ported from Hugging Face's names to flax.nnx kernels,
which transposes every matrix of attention. `python -m gqa_studies.porting SOURCE DEST` is one port in its own process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_studies.timing import seconds
from gqa_weights.checkpoint import TensorInfo, save_checkpoint
from gqa_weights.families import foreign_tensors, model_settings
from gqa_weights.port import plan, write

FAMILY, TARGET, DTYPE, BYTES = "llama", "flax", "bfloat16", 2
LAYER = AttentionConfig(embed_dim=4096, num_heads=32, num_kv_heads=8, causal=True, rope=RopeConfig(theta=500_000.0))
SHARDS = 4
LARGEST = 2**30  # bytes of anonymous memory that a port may take
LEAST = 0.5  # of the speed of cp
EVERY = 0.01  # seconds between two readings of the memory


@dataclass(frozen=True)
class Porting:
    """Seconds are medians. transposed: the share of bytes that were. synced: cp and then sync, as a port syncs too."""

    gigabytes: float
    transposed: float
    rounds: int
    port_seconds: float
    cp_seconds: float
    synced_cp_seconds: float
    share_of_cp: float
    share_of_synced_cp: float
    peak_mebibytes: float
    verdict: str


class DiskFull(ValueError):
    """The disk is too small for three copies."""


def config(gigabytes: float, layer: AttentionConfig = LAYER) -> ModelConfig:
    """As many layers as give about that many bytes."""
    one = ModelConfig(
        attention=(layer,), feed_forward_size=layer.embed_dim // 8, vocab_size=2 * layer.embed_dim, max_length=8192
    )
    ends = 2 * prod((one.vocab_size or 0, one.hidden_size))
    layers = round((gigabytes * 1e9 / BYTES - ends) / (one.param_count - ends))
    return replace(one, attention=(layer,) * max(1, layers))


def make(folder: Path, model: ModelConfig) -> None:
    """A sharded checkpoint with a config.json, of numbers that repeat: the port does not depend on them."""
    groups = foreign_tensors(FAMILY, model)
    largest = max(prod(group.shape) for group in groups)
    numbers = np.resize(np.random.default_rng(0).normal(size=2**16).astype(ml_dtypes.bfloat16), largest)

    def tensor(shape: tuple[int, ...]) -> np.ndarray:
        return numbers[: prod(shape)].reshape(shape)

    save_checkpoint(
        folder,
        [(group.name, TensorInfo(group.shape, DTYPE), partial(tensor, group.shape)) for group in groups],
        settings=model_settings(FAMILY, model),
        shard_bytes=max(1, BYTES * model.param_count // SHARDS),
    )


def measure(folder: Path, gigabytes: float, rounds: int, done: Callable[[], None] = lambda: None) -> Porting:
    """cp and port in turn, `rounds` times, in a folder that is empty again afterwards; `done` after each.

    Raises DiskFull where the disk is too small.
    """
    model = config(
        gigabytes, LAYER if gigabytes >= 1 else replace(LAYER, embed_dim=512, kv_dim=512, num_heads=4, num_kv_heads=2)
    )
    if shutil.disk_usage(folder).free < 3.2 * BYTES * model.param_count:
        raise DiskFull(f"{folder}: expected space for three copies of {gigabytes} GB")
    source, copied, ported = (folder / name for name in ("source", "copied", "ported"))
    try:
        make(source, model)
        copies, syncs, ports, peaks = [], [], [], []
        for _ in range(rounds):
            os.sync()
            copies.append(seconds(lambda: _cp(source, copied)))
            syncs.append(seconds(os.sync))
            shutil.rmtree(copied)
            found = _port(source, ported)
            ports.append(found["seconds"])
            peaks.append(found["peak"])
            shutil.rmtree(ported)
            done()
        return _result(model, source, copies, syncs, ports, peaks)
    finally:
        for path in (source, copied, ported):
            shutil.rmtree(path, ignore_errors=True)


def _cp(source: Path, copied: Path) -> None:
    reflink = ["--reflink=never"] if sys.platform == "linux" else []
    subprocess.run(["cp", "-R", *reflink, str(source), str(copied)], check=True)


def _port(source: Path, ported: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "gqa_studies.porting", str(source), str(ported)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def _result(
    model: ModelConfig, source: Path, copies: list[float], syncs: list[float], ports: list[float], peaks: list[int]
) -> Porting:
    shapes = {group.name: prod(group.shape) for group in foreign_tensors(FAMILY, model)}
    transposed = sum(size for name, size in shapes.items() if "_proj" in name and "self_attn" in name)
    synced = [cp + sync for cp, sync in zip(copies, syncs, strict=True)]
    share = statistics.median(cp / port for cp, port in zip(copies, ports, strict=True))
    peak = max(peaks)
    return Porting(
        gigabytes=sum(file.stat().st_size for file in source.iterdir()) / 1e9,
        transposed=transposed / sum(shapes.values()),
        rounds=len(ports),
        port_seconds=statistics.median(ports),
        cp_seconds=statistics.median(copies),
        synced_cp_seconds=statistics.median(synced),
        share_of_cp=share,
        share_of_synced_cp=statistics.median(cp / port for cp, port in zip(synced, ports, strict=True)),
        peak_mebibytes=peak / 2**20,
        verdict="reached" if share >= LEAST and 0 < peak < LARGEST else "missed",
    )


@contextmanager
def _watched(peak: list[int]) -> Iterator[None]:
    """Puts the most anonymous memory of this process, in bytes, into `peak`; 0 where the system does not say."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], anonymous_memory())
            time.sleep(EVERY)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def anonymous_memory() -> int:
    """RssAnon: what is not a part of a file, so neither mapped shards nor the page cache."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def main(source: str, dest: str) -> None:
    peak = [0]
    with _watched(peak):
        taken = seconds(lambda: write(plan(source, TARGET), dest, checksums=False))  # as cp computes none
    print(json.dumps({"seconds": taken, "peak": peak[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])

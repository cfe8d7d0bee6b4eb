"""Files damaged at random, from a few bytes flipped to pieces spliced: each is read or refused, and nothing else."""

from __future__ import annotations

import random
import re
import resource
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gqa_weights.checkpoint import CheckpointError, TensorInfo, open_checkpoint, save_checkpoint
from tests.weights.sound_files import SOUND, arrays, read_all

pytestmark = pytest.mark.no_shape_checks

MEMORY = 2**29  # bytes by which a whole run may grow: none of its files has a hundredth of that


@pytest.mark.parametrize("form", SOUND)
def test_the_files_to_damage_are_sound(form: str, tmp_path: Path) -> None:
    name, make = SOUND[form]
    (tmp_path / name).write_bytes(make())
    read_all(tmp_path / name)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / name)["head"], arrays()["head"])


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, splices, numbers pushed to their limits; where the structure is, at the start, more often."""
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        where = (
            rng.randrange(max(1, len(content))) if rng.random() < 0.5 else rng.randrange(min(200, len(content)) or 1)
        )
        kind = rng.randrange(7)
        if kind == 0:
            content[where : where + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            content[where : where + 1] = bytes([(content[where] if content else 0) ^ 1 << rng.randrange(8)])
        elif kind == 2:
            del content[where:]
        elif kind == 3:
            other = rng.randrange(max(1, len(content)))
            content[where:where] = content[other : other + rng.randrange(40)]
        elif kind == 4:
            del content[where : where + rng.randrange(1, 40)]
        elif kind == 5:
            size = rng.choice((4, 8))
            content[where : where + size] = rng.choice((0, 1, 2**31, 2**32 - 1, 255)).to_bytes(size, "little")
        else:
            _push_a_number(content, rng)
    return bytes(content)


def _push_a_number(content: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"\d+", bytes(content)))
    if found:
        start, end = rng.choice(found).span()
        content[start:end] = str(rng.choice((0, -1, 1, 3, 2**31, 2**63, 10**30, 1.5))).encode()


def fuzz(form: str, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """How many of `count` damaged files were refused, and how many still read."""
    name, make = SOUND[form]
    rng, refused = random.Random(f"{form} {seed}"), 0
    for number in range(count):
        path = folder / name
        path.write_bytes(damaged(make(), rng))
        try:
            read_all(path)
        except CheckpointError as error:
            if name not in str(error) or "\n" in str(error):
                raise AssertionError(f"file {number} of {form}, seed {seed}: {error}") from error
            refused += 1
        except BaseException as error:  # a panic of a Rust package is no Exception
            raise AssertionError(f"file {number} of {form}, seed {seed}: {error!r}") from error
    return refused, count - refused


def fuzz_folder(whole: Path, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """As `fuzz`, with one file of a folder damaged at a time."""
    rng, refused = random.Random(f"{whole.name} {seed}"), 0
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for number in range(count):
        path, victim = folder / f"{whole.name}.{number}", rng.choice(files)
        shutil.copytree(whole, path)
        (path / victim).write_bytes(damaged((whole / victim).read_bytes(), rng))
        try:
            read_all(path)
        except CheckpointError as error:
            if path.name not in str(error) or "\n" in str(error):
                raise AssertionError(f"folder {number}, {victim} damaged, seed {seed}: {error}") from error
            refused += 1
        except BaseException as error:
            raise AssertionError(f"folder {number}, {victim} damaged, seed {seed}: {error!r}") from error
        shutil.rmtree(path)
    return refused, count - refused


# orbax reads in an event loop of its own and leaves the tasks of a failed read behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("form", "count"), [("safetensors", 1000), ("orbax", 150)])
def test_damaged_folders_are_read_or_refused_and_nothing_else(form: str, count: int, tmp_path: Path) -> None:
    given = [(name, TensorInfo(x.shape, x.dtype.name), partial(np.array, x)) for name, x in arrays().items()]
    save_checkpoint(tmp_path / form, given, format=form, settings={"heads": 5}, shard_bytes=100)
    refused, read = fuzz_folder(tmp_path / form, count, 0, tmp_path)
    assert refused > count // 10
    assert read > 0


@pytest.mark.parametrize(
    ("form", "count"),
    [("safetensors", 4000), ("npz", 2000), ("npz_compressed", 1000), ("torch", 1000), ("gguf", 1000)],
)
def test_damaged_files_are_read_or_refused_and_nothing_else(form: str, count: int, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, read = fuzz(form, count, 0, tmp_path)
    assert refused > count // 10, "the damage is too slight to test anything"
    assert read > 0, "the damage is too great to pass the first check"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY

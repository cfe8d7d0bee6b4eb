"""How one file of a checkpoint is damaged: in its bytes, and in the values of its JSON."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    2**31,
    2**31 - 1,
    2**63,
    -(2**63),
    10**9,
    10**30,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\x1b[2J\x1b[31m",
    "\u202egnp",
    "[red]x[/red][/]",
    "x" * 100_000,
    "../../etc",
    "\0",
    "llama",
    "gemma3_text",
    "canonical",
    [],
    [[]],
    {},
    {"a": {}},
    [1] * 50,
    {"rope_type": "yarn", "factor": 0},
)
ARCHIVES = (".npz", ".bin", ".pt", ".pth")
NUMBERS = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 255, 10**9)


def mutate(file: Path, rng: random.Random) -> str:
    """Damage the file in place. Returns what was done."""
    raw = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.7:
        kind, content = "json", _json(raw, rng)
    elif file.suffix == ".safetensors" and rng.random() < 0.5:
        kind, content = "header", _header(raw, rng)
    elif file.suffix in ARCHIVES and rng.random() < 0.6:
        kind, content = "member", _member(raw, rng)
    else:
        kind, content = "bytes", _bytes(raw, rng, rng.random() < 0.6)
    file.write_bytes(content)
    return kind


def _member(raw: bytes, rng: random.Random) -> bytes:
    """One member of a zip archive is damaged, and the archive is whole: its checksums are those of the damage."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    structure = [m for m, _ in members if m.filename.endswith((".pkl", ".json", ".npy", "byteorder", "version"))]
    chosen = rng.choice(structure if rng.random() < 0.8 else [member for member, _ in members])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, content in members:
            if member is chosen:
                is_json = member.filename.endswith(".json") and rng.random() < 0.7
                content = _json(content, rng) if is_json else _bytes(content, rng, rng.random() < 0.6)
            archive.writestr(member.filename, content, member.compress_type)
    return out.getvalue()


def _json(raw: bytes, rng: random.Random) -> bytes:
    parsed = json.loads(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _edit(parsed, rng)
    return json.dumps(parsed).encode()


def _edit(parsed: Any, rng: random.Random) -> None:
    """One value somewhere inside is replaced, dropped, moved or repeated."""
    places = list(_places(parsed))
    if not places:
        return
    node, key = rng.choice(places[:40] if rng.random() < 0.5 else places)
    what = rng.randrange(6)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[str(rng.choice(HOSTILE))[:200_000]] = node.pop(key)
    elif what == 2 and isinstance(node, list):
        node.extend(deepcopy([node[key]] * rng.choice((1, 2, 1000))))
    elif what == 3 and places:
        other, place = rng.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    else:
        node[key] = deepcopy(rng.choice(HOSTILE))


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def _header(raw: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    text = _json(raw[8 : 8 + length], rng)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _bytes(raw: bytes, rng: random.Random, in_place: bool = False) -> bytes:
    """Flips, cuts, splices, numbers pushed to their limits; where the structure is, at the ends, more often.

    in_place: nothing moves, so that what follows the damage is still found.
    """
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        size = len(content)
        near = rng.random()
        where = rng.randrange(max(1, size))
        if near < 0.4:
            where = rng.randrange(max(1, min(600, size)))
        elif near < 0.6:
            where = max(0, size - 1 - rng.randrange(max(1, min(2000, size))))
        _damage(content, where, rng.choice((0, 1, 5)) if in_place else rng.randrange(8), rng)
    return bytes(content)


def _damage(content: bytearray, where: int, kind: int, rng: random.Random) -> None:
    if kind == 0:
        content[where : where + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
        content[where : where + 1] = bytes([(content[where] if content else 0) ^ 1 << rng.randrange(8)])
    elif kind == 2 and rng.random() < 0.3:
        del content[where:]
    elif kind == 3:
        other = rng.randrange(max(1, len(content)))
        content[where:where] = content[other : other + rng.randrange(40)]
    elif kind == 4:
        del content[where : where + rng.randrange(1, 40)]
    elif kind == 5:
        size = rng.choice((4, 8))
        content[where : where + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
    elif kind == 6:
        content[where:where] = bytes([rng.randrange(256)]) * rng.choice((1, 8, 64))
    else:
        _push_a_number(content, rng)


def _push_a_number(content: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"\d+", bytes(content[:20_000])))
    if found:
        start, end = rng.choice(found).span()
        content[start:end] = str(rng.choice((0, -1, 1, 3, 2**31, 2**63, 10**30, 1.5))).encode()

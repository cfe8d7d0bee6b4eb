""".npz: a zip archive of .npy files. NumPy has no dtype name for bfloat16: it is stored as two raw bytes, "V2", as
older versions of NumPy wrote it (newer ones pickle it).
"""

from __future__ import annotations

import json
import zipfile
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from gqa_weights.checkpoint import json_files as settings
from gqa_weights.checkpoint.atomic import sync
from gqa_weights.checkpoint.job import Job
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, TensorInfo, bounded, dtype_known, refuse

HEADER = 2**16  # of a .npy file; only that of a structured dtype could be longer


def read(path: Path) -> Contents:
    archive = zipfile.ZipFile(path)
    members = {member.filename: member for member in archive.infolist()}
    for name, member in members.items():
        bounded(path, name, member.file_size, member.compress_size)
    if len(members) < len(archive.infolist()):
        raise refuse(path, None, "one name is given twice in the archive")
    texts = settings.pair(lambda name: members.pop(f"{name}.json", None))
    entries = {name.removesuffix(".npy"): _entry(path, archive, member) for name, member in members.items()}
    return Contents("npz", entries, *(_settings(archive, text) if text else {} for text in texts))


def _settings(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    settings.check_size(member.file_size)  # which ends what is unpacked, too
    return settings.parse(archive.read(member))


def _entry(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry:
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        raise refuse(path, name, "expected a member whose name ends in .npy")
    with archive.open(member) as file:
        head = BytesIO(file.read(HEADER))
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(head)]
    shape, _, dtype = read_header(head)
    kind = "bfloat16" if dtype.str[1:] == "V2" else dtype.name
    if not dtype_known(kind) or dtype.subdtype:
        raise refuse(path, name, f"expected a dtype of plain numbers, got {dtype}")
    if min(shape, default=0) < 0 or head.tell() + prod(shape) * dtype.itemsize != member.file_size:
        raise refuse(path, name, f"expected the bytes of {kind} {shape}, got {member.file_size - head.tell()}")
    return Entry(path, TensorInfo(tuple(map(int, shape)), kind), partial(_read, archive, member, kind))


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kind: str) -> Array:
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # to the end, where the checksum is compared
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return native.view(kind)


def write(job: Job) -> None:
    with zipfile.ZipFile(job.path, "w") as archive:
        for tensor in job.tensors:
            name, info, _ = tensor
            descr = "|V2" if info.dtype == "bfloat16" else np.dtype(info.dtype).newbyteorder("<").str
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array_header_2_0(member, {"descr": descr, "fortran_order": False, "shape": info.shape})
                job.write(member, [tensor])
        for name, content in job.stated().items():
            archive.writestr(f"{name}.json", json.dumps(content, indent=2))
    sync(job.path)

"""orbax: the folder that it writes for a tree of arrays, such as the state of an nnx module."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gqa_weights.checkpoint import json_files as settings
from gqa_weights.checkpoint.files import is_file
from gqa_weights.checkpoint.job import Job, Tensor, write_settings
from gqa_weights.checkpoint.tensors import Array, Contents, Entry, Index, TensorInfo, bounded, refuse


@contextmanager
def _quiet() -> Iterator[None]:
    """orbax logs a warning where JAX's arrays are not registered, as those of NumPy are here. Where it fails, it closes
    its event loop while tensorstore still reads, and each read that ends later would print a traceback on stderr.
    """
    logger = logging.getLogger("absl")
    before, reports = logger.level, sys.unraisablehook
    logger.setLevel(logging.ERROR)
    sys.unraisablehook = reports if isinstance(reports, _WithoutLateReads) else _WithoutLateReads(reports)
    try:
        yield
        sys.unraisablehook = reports  # not after an error: the reads that it left may end at any time
    finally:
        logger.setLevel(before)


class _WithoutLateReads:
    """A `sys.unraisablehook` that passes on all but the reads that find their event loop closed."""

    def __init__(self, report: Callable[[Any], Any]) -> None:
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._report(unraisable)


def read(metadata: Path) -> Contents:
    """metadata: the file of that name in the checkpoint's folder. Names are joined with dots; `value`, which ends each
    name of an nnx state with variables, is left out.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    path = metadata.parent.absolute()  # orbax refuses a relative one
    for file in path.rglob("*"):
        if not file.is_dir():
            is_file(file, within=path)
    facts = settings.read(metadata.absolute(), settings.INDEX_LIMIT)
    if "tree_metadata" not in facts:
        raise refuse(metadata, None, "no tree_metadata in it: orbax did not finish this checkpoint; write it again")
    with _quiet():
        tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path)).tree
    leaves = list(_leaves(path, tree, ()))
    wrapped = all(keys[-1] == "value" for keys, _ in leaves)
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    entries: dict[str, Entry] = {}
    for keys, leaf in leaves:
        name = ".".join(keys[:-1] if wrapped else keys)
        info = TensorInfo(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        bounded(path, name, info.nbytes, stored)
        if name in entries:
            raise refuse(path, name, "the name is given twice")
        entries[name] = Entry(path, info, partial(_read, path, keys), _part_reader(path, facts, keys))
    return Contents("orbax", entries)


def _leaves(path: Path, node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping | list | tuple):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, inner in items:
            yield from _leaves(path, inner, (*keys, str(key)))
    elif keys and hasattr(node, "shape") and hasattr(node, "dtype"):
        yield keys, node
    else:
        raise refuse(path, ".".join(keys), f"expected an array, got {type(node).__name__}")


def _read(path: Path, keys: tuple[str, ...]) -> Array:
    import orbax.checkpoint as ocp

    item, restore = _nested([(keys, 0)]), _nested([(keys, ocp.RestoreArgs(restore_type=np.ndarray))])
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True)
        found = checkpointer.restore(path, args=args)
    for key in keys:
        found = found[key]
    return np.require(found, requirements="W")


def _part_reader(path: Path, facts: settings.Settings, keys: tuple[str, ...]) -> Callable[[Index], Array] | None:
    """Of the database of arrays that orbax writes by default; None for other forms of its folders."""
    if not facts.get("use_ocdbt"):
        return None
    kvstore = {"driver": "ocdbt", "base": path.as_uri(), "path": ".".join(keys) + "/"}
    driver = "zarr3" if facts.get("use_zarr3") else "zarr"
    # Without the last, a piece that is not there is read as zeros.
    return partial(_read_part, {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False})


def _read_part(place: dict[str, Any], index: Index) -> Array:
    """The pieces in which the array was written, as far as the part lies in them."""
    import tensorstore

    store = tensorstore.open(place, open=True, read=True).result()
    return np.require(store[index].read().result(), requirements="W")


def _nested(leaves: Sequence[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for keys, leaf in leaves:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree


def write(job: Job) -> None:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    class Leaf:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    class Handler(type_handlers.NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            """One at a time: orbax would have all tensors in memory before it writes the first."""
            for leaf, info, arg in zip(values, infos, args, strict=True):
                for written in await super().serialize([job.read_whole(leaf.tensor)], [info], [arg]):
                    written.result()
                job.done(leaf.tensor[1].nbytes)
            return []

    handlers = type_handlers.create_type_handler_registry((Leaf, Handler(deepcopy_host_arrays=False)))
    _check(job)
    tree = _nested([(tensor[0].split("."), Leaf(tensor)) for tensor in job.tensors])
    with (
        _quiet(),
        _system_errors(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)) as checkpointer,
    ):
        checkpointer.save(job.path, args=ocp.args.PyTreeSave(tree))
    write_settings(job)


@contextmanager
def _system_errors() -> Iterator[None]:
    """tensorstore reports errors of the operating system, such as a full disk, in the text of a ValueError."""
    try:
        yield
    except ValueError as error:
        if found := re.search(r"os_error_code=.(\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def _check(job: Job) -> None:
    names = {name for name, _, _ in job.tensors}
    for name, info, _ in job.tensors:
        if not info.nbytes:
            raise refuse(job.final, name, f"orbax stores no tensors without elements, got {info.shape}")
        parts = name.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[:end]) in names:
                raise refuse(job.final, name, f"cannot be in a tree with a tensor {'.'.join(parts[:end])!r}")

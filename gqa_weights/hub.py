"""Models by their id on the Hugging Face hub, where its cache on this machine has them. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local(given: str | Path) -> Path:
    """The path itself where something is there, else the cache's folder of a hub id.

    Raises:
        ValueError: For an id that the cache does not have, with the command that downloads it.
    """
    path, name = Path(given), str(given)
    if path.exists() or not ID.fullmatch(name) or path.suffix in SUFFIXES:
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        return path
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        raise ValueError(
            f"{name}: no such file or folder, nor is this hub id in the cache: `hf download {name}` puts it there"
        ) from error


SUFFIXES = (".safetensors", ".gguf", ".npz", ".pt", ".pth", ".bin", ".orbax")

"""Finished runs on disk, so that a study that was broken off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Runs:
    """A folder with a JSON file for each finished run. A run is found again under its name and all of its settings."""

    folder: Path

    def result(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        path = self._path(name, settings, ".json")
        return json.loads(path.read_text())["result"] if path.exists() else None

    def weights(self, name: str, settings: Mapping[str, Any]) -> Weights:
        return load_file(self._path(name, settings, ".safetensors"))

    def finish(
        self, name: str, settings: Mapping[str, Any], result: Mapping[str, Any], weights: Weights | None = None
    ) -> None:
        """The JSON file comes last and at once, so a file that exists is a whole run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            save_file(weights, self._path(name, settings, ".safetensors"))
        path = self._path(name, settings, ".json")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": settings, "result": result}, indent=1, allow_nan=False) + "\n")
        partial.replace(path)

    def _path(self, name: str, settings: Mapping[str, Any], suffix: str) -> Path:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}{suffix}"


DEFAULT = Runs(Path("results") / "runs")

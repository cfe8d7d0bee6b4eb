"""Where two attentions differ most: the place, and a picture of the two weight matrices and their difference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.trace.stages import Stages

Array = np.ndarray
WORDS = {"B": "batch row", "N": "head", "K": "KV head", "T": "query T", "S": "key S", "H": "H", "V": "Hv", "D": "D"}
SIDE = 3.2  # inches of one matrix


@dataclass(frozen=True)
class Place:
    """stage: what is shown. lead: the axes left of the matrix. a, b: the matrix of each. index: the place in the whole
    array where they differ most, with the two numbers there.
    """

    stage: str
    axes: str
    index: tuple[int, ...]
    a: Array
    b: Array

    @property
    def lead(self) -> str:
        """As in "batch row 0, head 3"."""
        pairs = zip(self.axes[:-2], self.index[:-2], strict=True)
        return ", ".join(f"{WORDS[axis]} {i}" for axis, i in pairs)

    @property
    def numbers(self) -> tuple[float, float]:
        t, s = self.index[-2:]
        return float(self.a[t, s]), float(self.b[t, s])


def place(a: Stages, b: Stages, preferred: tuple[str, ...] = ("weights",)) -> Place | None:
    """The matrix in which the two differ most: of the first preferred stage that both show in one shape, or of the last
    that they do. None where there is no such stage.
    """
    shared = [stage for stage in a if stage in b and a[stage].shape == b[stage].shape]
    if not shared:
        return None
    stage = next((stage for stage in preferred if stage in shared), shared[-1])
    x, y = (np.asarray(stages[stage], np.float64) for stages in (a, b))
    with np.errstate(invalid="ignore"):
        apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(np.isnan(apart), np.inf, apart)), x.shape))
    return Place(stage, _axes(stage), index, x[index[:-2]], y[index[:-2]])


def _axes(stage: str) -> str:
    """The axes of a stage; V is Hv."""
    special = {"output": "BTD", "context": "BNTV", "v_proj": "BKSV"}
    if stage in special:
        return special[stage]
    return {"q": "BNTH", "k": "BKSH"}.get(stage.split("_")[0], "BNTS")


def draw(shown: Place, names: tuple[str, str], title: str, path: Path) -> None:
    """Writes a PNG. Raises ModuleNotFoundError with one sentence where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--picture: matplotlib is not installed: pip install 'gqa[plots]'") from error
    difference = shown.b - shown.a
    rows, columns = shown.a.shape
    figure = Figure(figsize=(3 * SIDE + 1.2, SIDE * min(max(rows / columns, 0.5), 1.5) + 1.1), layout="constrained")
    figure.suptitle(f"{title}\n{shown.stage}, {shown.lead}", fontsize=10)
    finite = np.concatenate([x[np.isfinite(x)] for x in (shown.a, shown.b)] + [np.zeros(1)])
    low, high = float(finite.min()), float(finite.max())
    edge = float(np.abs(difference[np.isfinite(difference)]).max(initial=0.0)) or 1.0
    panels: list[tuple[str, Array, dict[str, Any]]] = [
        (names[0], shown.a, {"cmap": "viridis", "vmin": low, "vmax": high}),
        (names[1], shown.b, {"cmap": "viridis", "vmin": low, "vmax": high}),
        (f"{names[1]} - {names[0]}", difference, {"cmap": "RdBu_r", "vmin": -edge, "vmax": edge}),
    ]
    for axis, (name, matrix, colours) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.set_facecolor("0.6")  # where there is no finite number
        image = axis.imshow(np.where(np.isfinite(matrix), matrix, np.nan), aspect="auto", **colours)
        axis.set_title(name, fontsize=9)
        for along in (axis.xaxis, axis.yaxis):  # indices: no ticks between whole numbers
            along.get_major_locator().set_params(integer=True)
        axis.set_xlabel(WORDS[shown.axes[-1]], fontsize=8)
        axis.set_ylabel(WORDS[shown.axes[-2]], fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.9)
    figure.savefig(path, dpi=130, format="png")

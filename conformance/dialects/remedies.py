"""Remedies that are run: a call changed by its user so that an implementation answers as the specification says.

`detect` runs each on the target that it judges, and names only those that it saw work there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from conformance.dialects.probes import Probe

Array = np.ndarray


@dataclass(frozen=True)
class Remedy:
    """code: for the user of the implementation. before: the same change of a probe; after: of its context."""

    code: str
    before: Callable[[Probe], Probe] = lambda probe: probe
    after: Callable[[Probe, Array], Array] = lambda probe, context: context


def _lower_right(probe: Probe) -> Probe:
    return replace(probe, mask=np.tril(np.ones((probe.T, probe.S), bool), probe.S - probe.T), keywords={})


def _one_less(probe: Probe) -> Probe:
    return replace(probe, keywords=dict(probe.keywords) | {"window": probe.keywords["window"] - 1})


def _band(probe: Probe) -> Probe:
    i, j = np.ogrid[: probe.T, : probe.S]
    return replace(probe, mask=np.abs(i + probe.S - probe.T - j) < probe.keywords["window"], keywords={})


def _inverted(probe: Probe) -> Probe:
    return replace(probe, mask=~probe.mask)


def _as_bias(probe: Probe) -> Probe:
    if probe.mask is None or probe.mask.dtype != bool:
        return probe
    return replace(probe, mask=np.where(probe.mask, np.float32(0), np.float32(-np.inf)))


def _finite(probe: Probe) -> Probe:
    return replace(probe, mask=np.where(np.isinf(probe.mask), probe.mask, np.maximum(probe.mask, np.float32(-1e29))))


def _filled(probe: Probe, context: Array) -> Array:
    visible = probe.mask if probe.mask.dtype == bool else probe.mask > -np.inf
    return np.where(visible.any(-1)[..., None], context, 0)


def _scrubbed(probe: Probe) -> Probe:
    return replace(probe, poisoned="scrubbed")


def _single(probe: Probe) -> Probe:
    return replace(probe, dtype="float32")


def _tiled(probe: Probe) -> Probe:
    return replace(probe, order=tuple(int(n) for n in _order(probe)))


def _order(probe: Probe) -> Array:
    """Which query head goes to each place: the places n, n + K, .. read KV head n."""
    return np.arange(probe.N).reshape(probe.K, -1).T.ravel()


def _untiled(probe: Probe, context: Array) -> Array:
    return context[:, np.argsort(_order(probe))]


FILL = Remedy("`context = where(visible.any(-1)[..., None], context, 0)`", after=_filled)
ZEROS = Remedy("set keys and values that are hidden everywhere to 0 before the call", _scrubbed)
LESS = Remedy("give `W - 1` for a window of W keys", _one_less)
BIAS = Remedy("give `where(mask, 0.0, -inf)`, a bias", _as_bias)
REMEDIES: Mapping[tuple[str, str], Remedy] = {
    ("head order", "tiled: n % K"): Remedy(
        "`order = arange(N).reshape(K, -1).T.ravel()`; give `query[:, order]`, take `context[:, argsort(order)]`",
        _tiled,
        _untiled,
    ),
    ("alignment", "top-left"): Remedy("give `mask = tril(ones((T, S), bool), S - T)`, without causal", _lower_right),
    ("causal window of W", "counts neighbours: W + 1 keys"): LESS,
    ("window without causal", "counts neighbours: 2 W + 1 keys"): LESS,
    ("window without causal", "counts neighbours, the future open"): Remedy(
        "give the band as a mask, `abs(i + S - T - j) < W`", _band
    ),
    ("boolean mask", "True is hidden"): Remedy("give `~mask`", _inverted),
    ("boolean mask", "added as a number"): BIAS,
    ("boolean mask", "added as a number, but for padding"): BIAS,
    ("floating mask", "finfo.min is hidden"): Remedy("give `where(isinf(bias), bias, maximum(bias, -1e29))`", _finite),
    **{
        (f"empty row, {kind}", answer): FILL
        for kind in ("boolean", "-inf")
        for answer in ("NaN", "mean of all values", "the first value")
    },
    ("poison", "values leak"): ZEROS,
    ("poison", "keys and values leak"): ZEROS,
    ("softcap order", "boolean masks added as numbers"): BIAS,
    ("16-bit scores", "rounded to 16 bit"): Remedy("give float32 inputs", _single),
}

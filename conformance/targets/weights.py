"""Canonical weights into a layer: by its own method, or by the names and shapes of a layout of `gqa_weights`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from conformance.targets.binding import binding
from conformance.targets.frameworks import Framework
from conformance.targets.protocol import NotATarget
from gqa_spec import AttentionConfig
from gqa_weights import LAYOUTS, foreign_shapes, from_canonical

Array = np.ndarray
NO_WAY = "the class has neither load_weights(mapping) nor load_state_dict(mapping)"


def load(
    module: Any, weights: Mapping[str, Array], framework: Framework, layout: str, config: AttentionConfig | None
) -> None:
    """Loads canonical weights, stored as `layout` has them where one is named."""
    if layout:
        assert config is not None
        weights = from_canonical(LAYOUTS[layout], weights, config)
    if hasattr(module, "load_weights") and not (layout and hasattr(module, "load_state_dict")):
        module.load_weights(weights)
    elif hasattr(module, "load_state_dict"):
        _load_state(module, {name: framework.to(x) for name, x in weights.items()})
    elif framework.name == "jax":
        _assign(module, {name: framework.to(x) for name, x in weights.items()})
    else:
        raise NotATarget(NO_WAY)


def _load_state(module: Any, state: Mapping[str, Any]) -> None:
    """Every parameter and no other; a buffer of the module's own, such as RoPE's frequencies, may stay."""
    if not binding(module.load_state_dict, {}, ()).takes("strict"):
        module.load_state_dict(state)
        return
    found = module.load_state_dict(state, strict=False)
    if found is None:  # a class of its own, which has checked for itself
        return
    parameters = {name for name, _ in module.named_parameters()} if hasattr(module, "named_parameters") else set()
    missing = [name for name in found.missing_keys if name in parameters]
    if missing or found.unexpected_keys:
        raise NotATarget(
            f"its parameters are {', '.join(sorted(parameters))}, expected {', '.join(state)}; name their layout by "
            f"--weights"
        )


def _assign(module: Any, state: Mapping[str, Any]) -> None:
    """The parameters of a flax.nnx module, by their paths."""
    from flax import nnx

    for path, x in state.items():
        *parts, name = path.split(".")
        owner = module
        for part in parts:
            owner = getattr(owner, part, None)
        if owner is None or not hasattr(owner, name):
            raise NotATarget(f"it has no parameter {path}; name the layout of its weights by --weights")
        setattr(owner, name, nnx.Param(x))


def recognised(module: Any, config: AttentionConfig, layout: str) -> tuple[str, dict[str, Any]] | None:
    """The layout and the settings whose names and shapes are a torch module's, or None where none fits.

    Of several layouts that fit the canonical one is taken; others are only taken where one alone fits.
    """
    shapes = {name: tuple(x.shape) for name, x in module.named_parameters()}
    found: dict[str, dict[str, Any]] = {}
    for name in (layout,) if layout else ("canonical", *(n for n in LAYOUTS if n != "canonical")):
        for settings in _variants():
            try:
                if foreign_shapes(LAYOUTS[name], replace(config, **settings)) == shapes:
                    found.setdefault(name, settings)
            except ValueError:  # the layout cannot hold such a layer
                continue
        if "canonical" in found:
            break
    if "canonical" in found or len(found) == 1:
        [(name, settings)] = found.items()
        return ("" if name == "canonical" else name), settings
    return None


def _variants() -> Iterator[dict[str, Any]]:
    """Settings that change which parameters there are."""
    for biases, out, norm, sinks in product((False, True), (False, True), (None, "rms", "rms_full"), (False, True)):
        settings: dict[str, Any] = {"qkv_bias": biases, "out_bias": out, "qk_norm": norm, "sinks": sinks}
        yield {name: x for name, x in settings.items() if x}

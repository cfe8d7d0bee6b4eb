"""A module's canonical parameters by name: read, written and drawn, through parametrizations and pruning too.

A canonical parameter is a plain one, a parametrized one (torch.nn.utils.parametrize) or a pruned one
(torch.nn.utils.prune). Anything else in its place, as an adapter's wrapper or a quantized layer, has weights that are
not the projection's alone, and is an error for whoever reads or writes by canonical names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor as Array
from torch import nn
from torch.nn.utils import parametrize

from gqa_spec import checks
from gqa_torch.arrays import array, tensor
from gqa_torch.parts import spread, whole

Shapes = Mapping[str, tuple[int, ...]]


def floating(modules: Iterable[nn.Module]) -> nn.Parameter | None:
    """The first floating parameter, whose dtype and device are the layer's; None where all are quantized."""
    return next((p for module in modules for p in module.parameters() if p.is_floating_point()), None)


def local_rows(module: nn.Module) -> int | None:
    """How many rows a projection's weight has here: fewer than its config's where it is sharded or pruned by heads.

    None for a replaced or quantized projection, which says nothing of its width.
    """
    weight: Any = getattr(module, "weight", None)
    if type(weight) is not nn.Parameter and hasattr(weight, "to_local"):  # a DTensor, sharded over a mesh
        weight = weight.to_local()
    return weight.shape[0] if isinstance(weight, Array) else None


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that has a parameter of this path, and the parameter's own name.

    Raises:
        TypeError: Where a module without such a parameter is in its place.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if not (leaf in owner._parameters or parametrize.is_parametrized(owner, leaf) or is_pruned(owner, leaf)):
        raise TypeError(
            f"{name}: expected a parameter, plain, parametrized or pruned, got none in {type(owner).__name__}: "
            "merge the adapter or undo the quantization first"
        )
    return owner, leaf


def is_pruned(owner: nn.Module, leaf: str) -> bool:
    return f"{leaf}_orig" in owner._parameters and f"{leaf}_mask" in owner._buffers


def read(module: nn.Module, name: str) -> Array:
    """The value with which the module computes."""
    owner, leaf = owner_of(module, name)
    if is_pruned(owner, leaf):
        return getattr(owner, f"{leaf}_orig") * getattr(owner, f"{leaf}_mask")
    return getattr(owner, leaf)


@torch.no_grad()
def write(module: nn.Module, name: str, value: Array) -> None:
    """Copy a value into place. Of a pruned parameter the mask stays."""
    owner, leaf = owner_of(module, name)
    if is_pruned(owner, leaf):
        getattr(owner, f"{leaf}_orig").copy_(value)
        setattr(owner, leaf, read(module, name))  # as its hook does before each call
    elif parametrize.is_parametrized(owner, leaf):
        setattr(owner, leaf, value.to(getattr(owner, leaf)))
    else:
        parameter = owner.get_parameter(leaf)
        parameter.copy_(spread(value, parameter))


def has(module: nn.Module, name: str) -> bool:
    """Whether a canonical parameter is there to be drawn."""
    try:
        owner_of(module, name)
    except (AttributeError, TypeError):
        return False
    return True


def draw_projection(module: nn.Module, name: str) -> None:
    """SPEC 17: a matrix uniform in +-fan_in ** -0.5, a bias 0."""
    owner, leaf = owner_of(module, name)
    plain = owner._parameters.get(leaf)
    value = torch.empty_like(read(module, name)) if plain is None else plain  # drawn in place where it can be
    if value.ndim == 1:
        value.zero_()
    else:
        bound = value.shape[1] ** -0.5
        value.uniform_(-bound, bound)
    if plain is None:
        write(module, name, value)


def load(module: nn.Module, mapping: Mapping[str, Any], shapes: Shapes, symbols: Mapping[str, str]) -> None:
    """Copy weights of these shapes into place, all or none."""
    arrays = {name: x if isinstance(x, Array) else np.asarray(x) for name, x in mapping.items()}
    checks.weights(arrays, shapes, symbols, checks.dtype_name(read(module, next(iter(shapes)))))
    for name in shapes:
        owner_of(module, name)
    for name, x in arrays.items():
        write(module, name, tensor(x))


def export(module: nn.Module, shapes: Shapes) -> dict[str, np.ndarray]:
    """Copies of the weights by their canonical names."""
    return {name: array(whole(read(module, name))) for name in shapes}

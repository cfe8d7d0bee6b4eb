"""What a layer has to know of a mesh: which part of the heads, or of the positions, is this rank's. Set by `parallel`.

torch.distributed.tensor is imported where it is needed, since importing it takes longer than all of gqa_torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor as Array
from torch.nn import functional

from gqa_spec import checks
from gqa_spec.settings import RotationSettings
from gqa_torch.arrays import tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class TensorPart:
    """The number-th of `parts` equal parts of the heads."""

    number: int
    parts: int

    def of(self, whole: Float[Array, "B N T S"]) -> Float[Array, "B n T S"]:
        return whole.chunk(self.parts, dim=1)[self.number]


@dataclass(frozen=True)
class ContextPart:
    """This rank's part of each sequence: as many equal ones as the mesh has ranks, in order."""

    mesh: DeviceMesh

    @property
    def parts(self) -> int:
        return self.mesh.size()

    def start(self, T: int) -> int:
        """The position of the first of the part's T tokens."""
        return self.mesh.get_local_rank() * T

    def rotation(self, query: Array, key: Any, mask: Any, given: RotationSettings) -> RotationSettings:
        """Where this rank's tokens are in the whole sequence; whatever else says so is refused."""
        checks.array("query", query, Array)
        checks.context_parallel(key, mask, given)
        T = query.shape[1]
        positions = torch.arange(self.start(T), self.start(T) + T, device=query.device)
        length = self.parts * T if given.rope_length is None else given.rope_length
        return RotationSettings(positions=positions, key_positions=positions, offset=self.start(T), rope_length=length)

    def whole(self, x: Float[Array, "B K T h"]) -> Float[Array, "B K S h"]:
        """Keys or values of all ranks. Backwards, each part gets the sum of what all ranks' queries send it."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        gathered = DTensor.from_local(x, self.mesh, [Shard(2)], run_check=False).redistribute(placements=[Replicate()])
        return gathered.to_local(grad_placements=[Partial()])


def own(parameter: Any) -> Array:
    """This rank's part of a parameter that meets plain tensors: of norm weights and sinks, for this rank's heads.

    The gradient of a weight that is whole on each rank is the sum over the ranks, each of which has other heads.
    """
    if not hasattr(parameter, "to_local"):
        return parameter
    from torch.distributed.tensor import Partial

    placements = [Partial() if each.is_replicate() else each for each in parameter.placements]
    return parameter.redistribute(placements=parameter.placements).to_local(grad_placements=placements)


def linear(x: Float[Array, "B T D"], weight: Any) -> Float[Array, "B T V"]:
    """x @ weight.T, of a weight (V, D) that may be cut by the vocabulary."""
    if not hasattr(weight, "placements"):
        return functional.linear(x, weight)
    from torch.distributed.tensor import DTensor, Replicate

    mesh, everywhere = weight.device_mesh, [Replicate()] * weight.device_mesh.ndim
    logits: Any = functional.linear(DTensor.from_local(x, mesh, everywhere, run_check=False), weight)
    return logits.redistribute(placements=everywhere).to_local()


def whole(parameter: Any) -> Array:
    """All of a parameter, on every rank."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def spread(value: Array, like: Any) -> Array:
    """A value that every rank has, as `like` is spread over its mesh."""
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    same = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(same, like.device_mesh, like.placements, src_data_rank=None)


def fill(parameter: Any, read: Callable[[tuple[slice, ...]], np.ndarray]) -> None:
    """Copy this rank's part of a value into a parameter that is cut along one axis of a mesh, or is whole.

    read: a part of the value from its slices.
    """
    slices = [slice(None)] * parameter.ndim
    if hasattr(parameter, "placements"):
        [placement], mesh = parameter.placements, parameter.device_mesh
        if placement.is_shard():
            size = parameter.shape[placement.dim] // mesh.size()
            first = mesh.get_local_rank() * size
            slices[placement.dim] = slice(first, first + size)
        parameter = parameter.to_local()
    parameter.copy_(tensor(read(tuple(slices))))

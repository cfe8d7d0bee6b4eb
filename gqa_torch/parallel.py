"""Layers and models over a mesh, on PyTorch's own engines: DTensor for tensor parallelism, FSDP2 for data parallelism,
gathered keys and values for context parallelism.

Parameters keep their canonical names, their shapes and all K heads, so that a state dict or a distributed checkpoint of
one mesh loads on another. `gqa_spec.placement` says which axis of each weight is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor as Array
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from gqa_spec import checks
from gqa_spec.model_config import model_weight_shapes
from gqa_spec.placement import cut_axes, kv_head_copies
from gqa_torch.layer import GroupedQueryAttention
from gqa_torch.model import Transformer
from gqa_torch.parts import ContextPart, TensorPart, fill
from gqa_weights.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from gqa_weights.families import read_model

Parallel = TypeVar("Parallel", GroupedQueryAttention, Transformer)
WHOLE, LAST = Replicate(), Shard(-1)  # of activations (B, T, W)


def parallelize(
    module: Parallel,
    mesh: DeviceMesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    context: str | None = None,
    **fsdp_options: Any,
) -> Parallel:
    """Spread a layer or a model over a mesh, in place, on the meta device too.

    Args:
        module: The same weights on every rank.
        mesh: `init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))`, for instance.
        tensor: The axis over which heads, rows of the feed-forward and the vocabulary are cut. Inputs and outputs of
            the module stay whole.
        data: The axis over which FSDP2 shards parameters, block by block; each rank has its own rows of the batch.
        context: The axis over which positions are cut: rank r has the r-th of equal parts of each sequence, and keys
            and values are gathered. Without a mask, and not for `extend`.
        **fsdp_options: For `torch.distributed.fsdp.fully_shard`.

    Returns:
        The module itself.

    Raises:
        ValueError: For an axis that the mesh does not have, for a size that does not divide (with those that would do),
            and for a norm over all heads. Nothing is changed then.
        TypeError: For another kind of module.
    """
    checks.instance("module", module, GroupedQueryAttention | Transformer)
    checks.mesh_axes({"tensor": tensor, "data": data, "context": context}, mesh.mesh_dim_names or ())
    axes = {} if tensor is None else cut_axes(module.config, mesh[tensor].size())
    if tensor is not None:
        _cut(module, axes, mesh[tensor])
    if context is not None:
        for layer in _layers(module):
            layer.context_part = ContextPart(mesh[context])
    if data is not None:
        _shard(module, mesh[data], fsdp_options)
    return module


@torch.no_grad()
def from_checkpoint(
    path: str | Path | Checkpoint,
    mesh: DeviceMesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **fsdp_options: Any,
) -> Transformer:
    """Make a model in eval mode whose weights each rank reads its own parts.

    Args:
        path: As for `Transformer.from_checkpoint`.
        mesh, tensor, data, **fsdp_options: As for `parallelize`.
        dtype: Of the parameters; the widest of the checkpoint by default.
        device: Where this rank's parameters are.

    Raises:
        CheckpointError: For a file that cannot be read, on all ranks where one cannot read it.
        ValueError: As `parallelize`.
    """
    with _all_or_none(mesh, path):
        read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
        dtype = getattr(torch, read.dtype) if dtype is None else dtype
        model = Transformer(read.config, device="meta", dtype=dtype)
        if tensor is not None:
            parallelize(model, mesh, tensor=tensor)
        model.to_empty(device=device)
        for name in model_weight_shapes(read.config):
            fill(model.get_parameter(name), read.weights.reader(name))
    if data is not None:
        parallelize(model, mesh, data=data, **fsdp_options)
    return model.eval()


@contextmanager
def _all_or_none(mesh: DeviceMesh, path: Any) -> Iterator[None]:
    """What one rank cannot read is an error on all of them: none goes on, to wait for it in the next collective."""
    failed, error = torch.zeros(1, device=mesh.device_type), None
    try:
        yield
    except Exception as caught:
        failed, error = failed + 1, caught
    for axis in range(mesh.ndim):
        torch.distributed.all_reduce(failed, group=mesh.get_group(axis))
    if error is not None:
        raise error
    if failed.item():
        raise CheckpointError(f"{getattr(path, 'path', path)}: not read, since another rank could not read its part")


def _layers(module: nn.Module) -> Iterator[GroupedQueryAttention]:
    return (each for each in module.modules() if isinstance(each, GroupedQueryAttention))


def _cut(module: nn.Module, axes: dict[str, int | None], mesh: DeviceMesh) -> None:
    """Cut every parameter along its axis; its module computes with the parts of activations that belong to it."""
    for name, axis in axes.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        whole = owner.get_parameter(leaf).detach()
        placement = WHOLE if axis is None else Shard(axis)
        owner.register_parameter(leaf, nn.Parameter(distribute_tensor(whole, mesh, [placement])))
    for layer in _layers(module):
        copies = kv_head_copies(layer.config, mesh.size())
        layer.tensor_part = TensorPart(mesh.get_local_rank(), mesh.size())
        for projection, size in ((layer.k_proj, layer.config.head_dim), (layer.v_proj, layer.config.v_head_dim)):
            if copies > 1:
                _compute_within(projection, mesh, WHOLE, WHOLE, head=(mesh.get_local_rank() // copies, size))
    for path, owner in module.named_modules():
        axis, name = axes.get(f"{path}.weight"), path.rpartition(".")[2]
        shared = axis is None and name in ("k_proj", "v_proj")
        if f"{path}.weight" in axes and not shared and name not in ("q_norm", "k_norm"):
            inputs = LAST if axis == 1 else WHOLE
            outputs = LAST if axis == 0 and name not in ("embed", "head") else WHOLE
            _compute_within(owner, mesh, inputs, outputs)


def _compute_within(
    module: nn.Module, mesh: DeviceMesh, inputs: Placement, outputs: Placement, head: tuple[int, int] | None = None
) -> None:
    """Plain tensors outside, DTensors inside the module: its collectives follow from the placements, backwards too.

    head: number and size of the one head of the output that this rank's queries read.
    """

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = arguments
        return DTensor.from_local(x, mesh, [inputs], run_check=False), *rest

    def after(_: nn.Module, __: Any, y: DTensor) -> Array:
        y = y.redistribute(placements=[outputs])
        if head is None:
            return y.to_local()
        number, size = head
        return y.to_local(grad_placements=[Partial()])[..., number * size : (number + 1) * size]

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _shard(module: nn.Module, mesh: DeviceMesh, options: dict[str, Any]) -> None:
    """FSDP2: each block gathers its own parameters, in a call of the model and in `extend` and `generate`."""
    for block in module.blocks if isinstance(module, Transformer) else ():
        fully_shard(block, mesh=mesh, **options)
    fully_shard(module, mesh=mesh, **options)
    register_fsdp_forward_method(module, "extend")

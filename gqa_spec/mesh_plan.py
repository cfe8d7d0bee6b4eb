"""What a model costs on a mesh of devices, by arithmetic from its config: bytes per device, and bytes on the wire.

Over the axis `tensor` weights are cut as `placement.cut_axes` says, over `data` each device keeps a share of them
(FSDP), over `context` the queries of a row are split and its keys and values are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, weight_shapes
from gqa_spec.model_config import ModelConfig, model_weight_shapes
from gqa_spec.placement import cut_axes, kv_head_copies, local_config
from gqa_spec.sizes import model_kv_cache_bytes

MOMENTS = 8  # bytes of AdamW's two moments, kept in float32
FLOAT32 = 4


@dataclass(frozen=True)
class Mesh:
    """The number of devices along each axis."""

    tensor: int = 1
    data: int = 1
    context: int = 1

    @property
    def devices(self) -> int:
        return self.tensor * self.data * self.context


@dataclass(frozen=True)
class MeshPlan:
    """Bytes of one device unless a name says otherwise.

    weights: the part of the axis `tensor`, of which the axis `data` stores a share each. weights_of_own_heads: where
    each device keeps the KV heads that it reads and no others, as for serving. optimizer: AdamW's moments, and a
    float32 copy of 16-bit weights. largest_tensor: the largest axis `tensor` for which no KV head is copied.
    wire_per_token: sent by a device in one forward pass of the blocks, by all_reduces, of which `embedding_reduces` are
    the embedding's and not counted here. wire_tensor, wire_data, wire_context: sent in one training step.
    """

    devices: int
    parameters: int
    weights: int
    weights_of_own_heads: int
    stored_weights: int
    gradients: int
    optimizer: int
    cache_per_token: int
    cache: int
    kv_head_copies: int
    largest_tensor: int
    all_reduces: int
    embedding_reduces: int
    wire_per_token: float
    wire_tensor: float
    wire_data: float
    wire_context: float


def mesh_plan(config: ModelConfig, mesh: Mesh, *, length: int, batch_size: int = 1, element: int = 2) -> MeshPlan:
    """Plan a model on a mesh.

    Args:
        config: Of the model.
        mesh: Devices along each axis.
        length: Tokens of a row, cached or trained on.
        batch_size: Rows of one part of the axis `data`.
        element: Bytes of a number.

    Raises:
        ValueError: For an axis that does not divide what it cuts, with the sizes that would do.
    """
    _check(mesh, length, batch_size, element)
    local = [local_config(layer, mesh.tensor) for layer in config.attention]
    parts = _part_sizes(config, mesh.tensor)
    count, stored = sum(parts.values()), ceil(sum(parts.values()) / mesh.data)
    forward = _forward_bytes(config, mesh.tensor, element)
    return MeshPlan(
        devices=mesh.devices,
        parameters=config.param_count,
        weights=count * element,
        weights_of_own_heads=(count - _unread_heads(config.attention, local)) * element,
        stored_weights=stored * element,
        gradients=stored * element,
        optimizer=stored * (MOMENTS + (FLOAT32 if element < FLOAT32 else 0)),
        cache_per_token=model_kv_cache_bytes(local, 1, bytes_per_element=element),
        cache=model_kv_cache_bytes(local, length, batch_size=batch_size, bytes_per_element=element, rolling=True),
        kv_head_copies=max(kv_head_copies(layer, mesh.tensor) for layer in config.attention),
        largest_tensor=min(layer.num_kv_heads for layer in config.attention),
        all_reduces=2 * config.num_layers if mesh.tensor > 1 else 0,
        embedding_reduces=int(cut_axes(config, mesh.tensor).get("embed.weight") is not None and mesh.tensor > 1),
        wire_per_token=forward,
        wire_tensor=2 * forward * batch_size * length / mesh.context,
        wire_data=3 * _share(mesh.data) * count * element,
        wire_context=_context_bytes(local, mesh.context, batch_size * length, element)
        + 2 * _share(mesh.context) * stored * element,
    )


def _check(mesh: Mesh, length: int, batch_size: int, element: int) -> None:
    for name in ("data", "context"):
        checks.integer(name, getattr(mesh, name), at_least=1)
    checks.integer("length", length, symbol="S", at_least=1)
    checks.integer("batch_size", batch_size, symbol="B", at_least=1)
    checks.integer("bytes_per_element", element, at_least=1)
    if length % mesh.context:
        raise ValueError(f"context: expected context to divide length = {length}, got {mesh.context}")


def _part_sizes(config: ModelConfig, tensor: int) -> dict[str, int]:
    """Numbers of each weight on one device: a whole weight, or an equal part of one that is cut."""
    axes = cut_axes(config, tensor)
    return {
        name: prod(shape) // (tensor if axes[name] is not None else 1)
        for name, shape in model_weight_shapes(config).items()
    }


def _unread_heads(layers: Sequence[AttentionConfig], local: Sequence[AttentionConfig]) -> int:
    """Numbers of key and value projections that lie whole on each device, of heads that it does not read."""
    unread = 0
    for whole, part in zip(layers, local, strict=True):
        if whole.num_kv_heads < whole.num_heads // part.num_heads:
            shapes = [weight_shapes(layer) for layer in (whole, part)]
            kept = [sum(prod(each[name]) for name in each if name.startswith(("k_proj", "v_proj"))) for each in shapes]
            unread += kept[0] - kept[1]
    return unread


def _forward_bytes(config: ModelConfig, tensor: int, element: int) -> float:
    """Two all-reduces a block of one token's D numbers; a ring sends each number 2 (n - 1) / n times."""
    return 2 * config.num_layers * config.hidden_size * element * 2 * _share(tensor)


def _context_bytes(local: Sequence[AttentionConfig], context: int, tokens: int, element: int) -> float:
    """Keys and values of all parts are gathered, and their gradients scattered back."""
    return 2 * _share(context) * model_kv_cache_bytes(local, tokens, bytes_per_element=element)


def _share(devices: int) -> float:
    """What a ring of devices sends of each number: (n - 1) / n."""
    return (devices - 1) / devices

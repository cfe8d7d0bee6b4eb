"""Layers and models over a mesh of JAX: where each weight is, and which part of the kernel each device computes.

Arrays stay whole in the program, as everywhere in JAX; XLA adds the collectives. Parameters keep their names, their
shapes and all K heads, so that a checkpoint of one mesh loads on another. `gqa_spec.placement` says which axis of each
weight is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gqa_jax.layer import GroupedQueryAttention, available
from gqa_jax.linear import parameter, set_parameter
from gqa_jax.model import Transformer
from gqa_jax.parts import MeshPart
from gqa_spec import AttentionConfig, ModelConfig, checks
from gqa_spec.config import weight_shapes
from gqa_spec.model_config import model_weight_shapes
from gqa_spec.placement import cut_axes
from gqa_weights.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from gqa_weights.families import FAMILIES, MANIFEST, read_model
from gqa_weights.manifest import manifest

Parallel = TypeVar("Parallel", GroupedQueryAttention, Transformer)
Config = AttentionConfig | ModelConfig


def shardings(
    config: Config,
    mesh: Mesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    context: str | None = None,
    fsdp: bool = False,
) -> dict[str, NamedSharding]:
    """Where each canonical weight is.

    Args:
        config: A layer's or a model's.
        mesh: With axes of AxisType.Auto: `jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)`.
        tensor: The axis over which heads, rows of the feed-forward and the vocabulary are cut.
        data: The axis over which the batch is cut. It cuts weights with fsdp alone.
        context: The axis over which positions are cut. It cuts no weight.
        fsdp: Whether each matrix is cut over `data` too, along its other axis where that divides.

    Returns:
        canonical name -> sharding of the canonical weight; the kernel of an `nnx.Linear` is its transpose.

    Raises:
        ValueError: For an axis that the mesh does not have or that is Explicit, for a size that does not divide (with
            those that would do), for a norm over all heads, and for experts.
    """
    _check_mesh(mesh, {"tensor": tensor, "data": data, "context": context}, fsdp)
    checks.no_experts(config)
    axes = cut_axes(config, 1 if tensor is None else mesh.shape[tensor])
    shapes = weight_shapes(config) if isinstance(config, AttentionConfig) else model_weight_shapes(config)
    shards = mesh.shape[data] if fsdp and data is not None else 1
    return {name: NamedSharding(mesh, _spec(shapes[name], axes[name], tensor, data, shards)) for name in shapes}


def parallelize(
    module: Parallel,
    mesh: Mesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    context: str | None = None,
    fsdp: bool = False,
) -> Parallel:
    """Spread a layer or a model over a mesh, in place, an abstract one (`nnx.eval_shape`) too.

    Args:
        module: A layer or a model. Calls, gradients, `extend` and `generate` are used as before.
        mesh, tensor, data, fsdp: As for `shardings`. Shard the tokens over `data` for each device to have its own rows.
        context: The axis over which the queries' positions are cut; keys and values are gathered. `extend` does not
            use it.

    Returns:
        The module itself.

    Raises:
        ValueError: As `shardings`. Nothing is changed then.
        TypeError: For another kind of module.
    """
    checks.instance("module", module, GroupedQueryAttention | Transformer)
    places = shardings(module.config, mesh, tensor=tensor, data=data, context=context, fsdp=fsdp)
    everywhere, placed = NamedSharding(mesh, P()), {}
    for name, place in places.items():
        variable, transposed = parameter(module, name)
        placed[id(variable)] = _transposed(place) if transposed else place
    for each in _variables(module):
        each.set_value(_put(each.get_value(), placed.get(id(each), everywhere)))
    part = MeshPart(mesh, tensor, data, context)
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, GroupedQueryAttention):
            layer.mesh_part = part
    return module


def abstract_state(
    config: Config,
    mesh: Mesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    fsdp: bool = False,
    param_dtype: Any = jnp.float32,
) -> nnx.State:
    """Shapes, dtypes and shardings of `nnx.state(module)`, into which orbax restores a checkpoint of any mesh.

    Args:
        config, mesh, tensor, data, fsdp: As for `shardings`.
        param_dtype: Of the weights.

    Raises:
        ValueError: As `shardings`.
    """
    module = _abstract(config, param_dtype)
    return nnx.state(parallelize(module, mesh, tensor=tensor, data=data, fsdp=fsdp))


def from_checkpoint(
    path: str | Path | Checkpoint,
    mesh: Mesh,
    *,
    tensor: str | None = None,
    data: str | None = None,
    fsdp: bool = False,
    dtype: Any = None,
) -> Transformer:
    """Make a model in eval mode, of whose weights each device gets its own parts, without a whole copy of any.

    Args:
        path: As for `Transformer.from_checkpoint`, or what `save_checkpoint` wrote.
        mesh, tensor, data, fsdp: As for `shardings`.
        dtype: As for `Transformer.from_checkpoint`.

    Raises:
        CheckpointError: For a file that cannot be read.
        ValueError: As `shardings`.
    """
    read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
    dtype = available(read.dtype if dtype is None else dtype)
    model = parallelize(_abstract(read.config, dtype), mesh, tensor=tensor, data=data, fsdp=fsdp)
    drawn = jax.jit(lambda: nnx.state(_new(read.config, dtype), nnx.RngState))()
    nnx.update(model, jax.device_put(drawn, NamedSharding(mesh, P())))
    for name in model_weight_shapes(read.config):
        set_parameter(model, name, read.weights.reader(name), dtype)
    return model.eval()


def save_checkpoint(model: Transformer, path: str | Path) -> None:
    """Write a model by orbax, each process the parts that it has, as `from_checkpoint` and `gqa port` read it.

    Args:
        model: On any mesh, or on none.
        path: A folder that does not exist yet. It gets the canonical weights and gqa_manifest.json.

    Raises:
        CheckpointError: For a path that exists.
        ModuleNotFoundError: Without orbax.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if path.exists():
        raise CheckpointError(f"{path}: expected a path that does not exist yet")
    weights = {name: _canonical(model, name) for name in model_weight_shapes(model.config)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, weights)
        checkpointer.wait_until_finished()
    if jax.process_index() == 0:
        family = FAMILIES["canonical"]
        stated = manifest(
            model.config,
            family.tensors.table,
            family=family.name,
            dtypes=(x.dtype.name for x in weights.values()),
            source={},
            settings={},
        )
        (path / MANIFEST).write_text(json.dumps(stated, indent=2))


def _check_mesh(mesh: Mesh, axes: dict[str, str | None], fsdp: bool) -> None:
    checks.instance("mesh", mesh, Mesh)
    names = tuple(map(str, mesh.axis_names))
    checks.mesh_axes(axes, names)
    kinds = zip(names, mesh.axis_types, strict=True)
    checks.mesh_axis_types([name for name, kind in kinds if kind == AxisType.Explicit], len(names))
    checks.boolean("fsdp", fsdp)


def _spec(shape: tuple[int, ...], cut: int | None, tensor: str | None, data: str | None, shards: int) -> P:
    names = [None if axis != cut else tensor for axis in range(len(shape))]
    other = next((axis for axis, size in enumerate(shape) if axis != cut and size % shards == 0), None)
    if shards > 1 and len(shape) > 1 and other is not None:
        names[other] = data
    return P(*names)


def _transposed(place: NamedSharding) -> NamedSharding:
    return NamedSharding(place.mesh, P(*reversed(place.spec)))


def _variables(module: nnx.Module) -> Iterator[nnx.Variable[Any]]:
    return (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Variable))


def _put(x: Any, place: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.device_put(x, place)


def _new(config: Config, param_dtype: Any) -> Any:
    if isinstance(config, AttentionConfig):
        return GroupedQueryAttention.from_config(config, rngs=nnx.Rngs(0), param_dtype=param_dtype)
    return Transformer(config, rngs=nnx.Rngs(0), param_dtype=param_dtype)


def _abstract(config: Config, param_dtype: Any) -> Any:
    checks.instance("config", config, Config)
    return nnx.eval_shape(lambda: _new(config, param_dtype))


def _canonical(model: Transformer, name: str) -> Array:
    variable, transposed = parameter(model, name)
    x = variable.get_value()
    return x.T if transposed else x

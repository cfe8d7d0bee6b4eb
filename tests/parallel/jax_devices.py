"""Run by test_jax_parallel.py: gqa_jax over four forced devices, in one process, since XLA counts its devices once.

Prints JSON: name of a check -> the largest relative difference, or whatever it found.
"""

from __future__ import annotations

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"

import ctypes
import gc
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gqa_jax.attention
from gqa_jax import GroupedQueryAttention, Transformer, masks
from gqa_jax.parallel import abstract_state, from_checkpoint, parallelize, save_checkpoint, shardings
from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.config import weight_shapes
from gqa_spec.model_config import model_weight_shapes
from gqa_spec.placement import cut_axes
from tests.docs.documents import ROOT, block_starting

DEVICES = 4
ROLLUP = Path("/proc/self/smaps_rollup")
MESHES = ((4, 1), (2, 2), (1, 4))
TOKENS = np.arange(4 * 8).reshape(4, 8) % 20
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "every setting": (
        {"sinks": True, "qk_norm": "rms", "qkv_bias": True, "out_bias": True, "window": 3, "softcap": 5.0,
         "rope": RopeConfig()},
        {"tied": True},
    ),
    "norms with biases": (
        {"qk_norm": "rms_plus_one", "rope": RopeConfig(), "dropout": 0.3},
        {"norm": "layer", "norm_bias": True, "gated": False, "feed_forward_bias": True, "dropout": 0.2},
    ),
}  # fmt: skip
# Of a model, K and a mesh: every model and K on 1 x 4, where heads are cut most; some on the others.
GRADIENTS = (
    *(("every setting", K, (1, 4)) for K in (8, 4, 2, 1)),
    *(("plain", K, (1, 4)) for K in (4, 2)),
    *(("norms with biases", K, (1, 4)) for K in (8, 1)),
    ("every setting", 1, (2, 2)),
    ("norms with biases", 4, (2, 2)),
    ("plain", 8, (4, 1)),
)
CONTEXTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 5},
    "chunk, softcap": {"chunk": 6, "softcap": 3.0},
    "sinks, window": {"window": 9, "sinks": True},
    "both sides": {"causal": False},
}


def mesh_of(data: int, tensor: int) -> Mesh:
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def attention(num_kv_heads: int, **settings: Any) -> AttentionConfig:
    sizes: dict[str, Any] = {"embed_dim": 24, "num_heads": 8, "num_kv_heads": num_kv_heads, "head_dim": 6}
    return AttentionConfig(**sizes | {"causal": True} | settings)


def drawn(module: Any) -> Any:
    """No norm weight 1 and no bias 0."""
    rng = np.random.default_rng(0)
    of_layer = isinstance(module, GroupedQueryAttention)
    shapes = weight_shapes(module.config) if of_layer else model_weight_shapes(module.config)
    return module.load_weights({name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()})


def model(name: str, num_kv_heads: int, layers: int = 1) -> Transformer:
    of_layers, of_model = MODELS[name]
    layer = attention(num_kv_heads, **of_layers)
    config = ModelConfig(attention=(layer,) * layers, feed_forward_size=16, vocab_size=20, **of_model)
    return drawn(Transformer(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64))


def difference(got: Any, wanted: Any) -> float:
    got, wanted = np.asarray(got), np.asarray(wanted)
    return float(abs(got - wanted).max() / max(abs(wanted).max(), 1e-9))


def apart(got: Any, wanted: Any) -> float:
    return max(map(difference, jax.tree.leaves(got), jax.tree.leaves(wanted)))


def collectives(function: Any, *arguments: Any) -> dict[str, int]:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def same_weights(a: Any, b: Any) -> bool:
    theirs = b.export_weights()
    return all(np.array_equal(x, theirs[name]) for name, x in a.export_weights().items())


@nnx.jit
def gradient(module: Any, tokens: Any) -> Any:
    return nnx.grad(lambda m: (m(tokens) ** 2).mean())(module)


def gradients() -> Iterator[tuple[str, Any]]:
    """In training mode: dropout draws what one device draws."""
    wanted = {}
    for name, K, (d, t) in GRADIENTS:
        one, cut = model(name, K), parallelize(model(name, K), mesh_of(d, t), tensor="tensor", data="data")
        if (name, K) not in wanted:
            wanted[name, K] = gradient(one, TOKENS)
        tokens = jax.device_put(TOKENS, NamedSharding(mesh_of(d, t), P("data")))
        yield f"gradients, {name}, K = {K}, {d} x {t}", apart(gradient(cut, tokens), wanted[name, K])


def blocked() -> Iterator[tuple[str, Any]]:
    """The blocked path: its loop runs over B * K / tensor heads on each device."""
    sizes = gqa_jax.attention.PACKED_ROWS, gqa_jax.attention.PACKED_WEIGHTS
    gqa_jax.attention.PACKED_ROWS = gqa_jax.attention.PACKED_WEIGHTS = 0
    mesh, x = mesh_of(1, 4), jnp.asarray(np.random.default_rng(1).normal(size=(3, 16, 24)))
    for K in (8, 2):
        config = attention(K, rope=RopeConfig(), window=9, sinks=True)
        one, cut = (
            drawn(GroupedQueryAttention.from_config(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64))
            for _ in range(2)
        )
        parallelize(cut, mesh, tensor="tensor")
        graph, state = nnx.split(cut)

        def forward(state: Any, x: Any, graph: Any = graph) -> Any:
            return nnx.merge(graph, state)(x, need_weights=False)[0]

        text = jax.jit(forward).lower(state, x).compile().as_text()
        yield f"loop, K = {K}", sorted(map(int, re.findall(r'known_trip_count":\{"n":"(\d+)"', text)))
        yield f"blocked, K = {K}", difference(jax.jit(forward)(state, x), one(x)[0])
        yield f"blocked, collectives, K = {K}", collectives(forward, state, x)
        got, wanted = (
            nnx.jit(nnx.grad(lambda m: (m(x, need_weights=False)[0] ** 2).sum()))(each) for each in (cut, one)
        )
        yield f"blocked, gradients, K = {K}", apart(got, wanted)
    gqa_jax.attention.PACKED_ROWS, gqa_jax.attention.PACKED_WEIGHTS = sizes


def programs() -> Iterator[tuple[str, Any]]:
    """What is sent in a forward pass and in a step of decoding: the embedding's sum and two for each layer."""
    for K in (4, 2):
        cut = parallelize(model("every setting", K, layers=3), mesh_of(1, 4), tensor="tensor").eval()
        graph, state = nnx.split(cut)
        cache = cut.init_cache(2, 8)
        forward = collectives(lambda state, tokens, graph=graph: nnx.merge(graph, state)(tokens), state, TOKENS)
        yield f"forward, K = {K}", forward
        step = collectives(
            lambda state, tokens, cache, graph=graph: nnx.merge(graph, state).extend(tokens, cache),
            state, TOKENS[:2, :1], cache,
        )  # fmt: skip
        yield f"step, K = {K}", step
        yield f"heads in the cache, K = {K}", [x.data.shape[1] for x in cache[0].keys.addressable_shards]


def texts() -> Iterator[tuple[str, Any]]:
    """Rolling caches and prompts of several lengths; a batch that `data` does not divide is whole on every device."""
    for K, (d, t), prompts in ((1, (2, 2), [[1, 2, 3], [4, 5]]), (4, (1, 4), [[7, 8, 9, 10, 11]]), (2, (2, 2), [[3]])):
        one, cut = (model("every setting", K).eval() for _ in range(2))
        parallelize(cut, mesh_of(d, t), tensor="tensor", data="data")
        yield f"text, K = {K}", cut.generate(prompts, 5) == one.generate(prompts, 5)
        yield f"weights, K = {K}", same_weights(cut, one)
        cut.load_weights(one.export_weights())
        yield f"still spread, K = {K}", len(cut.embed.weight.get_value().sharding.device_set) == DEVICES


def layer_calls() -> Iterator[tuple[str, Any]]:
    """A layer with a mask for each head, per-row offsets and weights; a cache in which rows have several lengths."""
    config, mesh = attention(2, rope=RopeConfig()), mesh_of(2, 2)
    one, cut = (
        drawn(GroupedQueryAttention.from_config(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64)) for _ in range(2)
    )
    parallelize(cut, mesh, tensor="tensor", data="data")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 24)))

    @nnx.jit
    def results(layer: Any, x: Any) -> Any:
        whole = layer(x, mask=masks.alibi(8, 5, 5), offset=jnp.array([0, 2]))
        output, cache = layer.extend(x, layer.init_cache(2, 9), lengths=jnp.array([5, 2]))
        return whole, output, cache.keys, layer.extend(x[:, :1], cache)[0]

    yield "layer", apart(results(cut, x), results(one, x))


def contexts() -> Iterator[tuple[str, Any]]:
    mesh = jax.make_mesh((4,), ("context",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 12, 24)))
    for name, settings in CONTEXTS.items():
        config = attention(2, rope=RopeConfig(), **settings)
        one, cut = (
            drawn(GroupedQueryAttention.from_config(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64))
            for _ in range(2)
        )
        parallelize(cut, mesh, context="context")
        mask = masks.padding(jnp.array([12, 7]), 12) if name == "both sides" else None

        @nnx.jit
        def both(layer: Any, x: Any, mask: Any = mask) -> Any:
            def loss(layer: Any, x: Any) -> Any:
                output = layer(x, mask=mask, need_weights=False)[0]
                return (output**2).sum(), output

            return nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)

        placed = jax.device_put(x, NamedSharding(mesh, P(None, "context")))
        (got, output), (wanted, expected) = both(cut, placed), both(one, x)
        yield f"context, {name}", difference(output, expected)
        yield f"gradients in context, {name}", apart(got, wanted)
    try:
        cut(x[:, :5])
    except ValueError as error:
        yield "refused, T", str(error)


def checkpoints(folder: Path) -> Iterator[tuple[str, Any]]:
    """Written on one mesh and read on others."""
    whole = model("norms with biases", 2)
    saved = parallelize(model("norms with biases", 2), mesh_of(2, 2), tensor="tensor", data="data", fsdp=True)
    yield "share with fsdp", saved.embed.weight.get_value().addressable_shards[0].data.size / (20 * 24)
    yield "gradients with fsdp", apart(gradient(saved, TOKENS), gradient(whole, TOKENS))
    save_checkpoint(saved, folder / "saved")
    for d, t in MESHES:
        back = from_checkpoint(folder / "saved", mesh_of(d, t), tensor="tensor", data="data")
        yield f"orbax, 2 x 2 to {d} x {t}", same_weights(back, whole)
    yield "orbax, 2 x 2 to one device", same_weights(Transformer.from_checkpoint(folder / "saved"), whole)
    try:
        save_checkpoint(saved, folder / "saved")
    except ValueError as error:
        yield "saved twice", str(error).removeprefix(str(folder))

    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", nnx.state(saved))
        checkpointer.wait_until_finished()
        mesh = mesh_of(1, 4)
        wanted = abstract_state(saved.config, mesh, tensor="tensor", param_dtype=jnp.float64)
        state = checkpointer.restore(folder / "state", wanted)
    other = parallelize(Transformer(saved.config, rngs=nnx.Rngs(1), param_dtype=jnp.float64), mesh, tensor="tensor")
    nnx.update(other, state)
    yield "state, 2 x 2 to 1 x 4", same_weights(other, whole)
    yield "state, spread", other.blocks[0].attention.q_proj.kernel.get_value().addressable_shards[0].data.shape


def private_bytes() -> int:
    """Of this process: memory that holds no pages of a file."""
    gc.collect()
    if ROLLUP.exists():
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is taken again
    lines = ROLLUP.read_text().splitlines() if ROLLUP.exists() else ["Anonymous: 0 kB"]
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def smallest_growth(read: Callable[[], Any], nbytes: int) -> tuple[Any, float]:
    """What is read, and the growth of private memory over the bytes of all weights.

    Of three: threads that a format's package starts, and whatever is imported and compiled, take memory once.
    """
    growths = []
    for _ in range(3):
        model = None  # frees the one before
        before = private_bytes()
        model = read()
        growths.append((private_bytes() - before) / nbytes)
    return model, min(growths)


def reading(paths: Path) -> Iterator[tuple[str, Any]]:
    """From each format into the parts of four devices, and into those of one of four ranks of PyTorch."""
    one = Transformer.from_checkpoint(paths / "safetensors")
    whole = one.export_weights()
    nbytes = sum(x.nbytes for x in whole.values())
    rank = torch_rank()

    def on_devices(path: Path) -> Transformer:
        return from_checkpoint(path, mesh_of(1, 4), tensor="tensor", data="data")

    yield "private memory is measured", ROLLUP.exists()
    for format, name in (("safetensors", "safetensors"), ("gguf", "gguf.gguf"), ("orbax", "orbax.orbax")):
        cut, growth = smallest_growth(lambda name=name: on_devices(paths / name), nbytes)
        yield f"{format}: growth", growth
        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(nnx.state(cut, nnx.Param)))
        yield f"{format}: share of the weights", held / nbytes
        yield f"{format}: weights", same_weights(cut, one)
        part, growth = smallest_growth(lambda name=name: rank(paths / name), nbytes)
        yield f"{format}: growth of a rank", growth
        axes = cut_axes(one.config, DEVICES)
        yield (
            f"{format}: weights of a rank",
            all(
                np.array_equal(
                    part.get_parameter(name).to_local().detach().numpy(),
                    x if axes[name] is None else np.split(x, DEVICES, axes[name])[2],
                )
                for name, x in whole.items()
            ),
        )
    yield "text of a checkpoint", cut.generate([[1, 2, 3]], 9) == one.generate([[1, 2, 3]], 9)


def torch_rank() -> Any:
    """A function that reads a checkpoint as rank 2 of four does; the other three are not there."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from gqa_torch.parallel import from_checkpoint

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=2, world_size=DEVICES)
    mesh = init_device_mesh("cpu", (DEVICES,), mesh_dim_names=("tensor",))
    return lambda path: from_checkpoint(path, mesh, tensor="tensor")


def refusals() -> Iterator[tuple[str, Any]]:
    """What is refused leaves the module as it was."""
    mesh, explicit = mesh_of(1, 4), jax.make_mesh((1, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    bad: dict[str, tuple[AttentionConfig, Mesh, dict[str, Any]]] = {
        "N": (attention(3, num_heads=6), mesh, {"tensor": "tensor"}),
        "K": (attention(3, num_heads=12), mesh, {"tensor": "tensor"}),
        "rms_full": (attention(8, qk_norm="rms_full"), mesh, {"tensor": "tensor"}),
        "axis": (attention(8), mesh, {"tensor": "model"}),
        "none": (attention(8), mesh, {}),
        "explicit": (attention(8), explicit, {"tensor": "tensor"}),
    }
    for name, (config, mesh, given) in bad.items():
        layer = GroupedQueryAttention.from_config(config, rngs=nnx.Rngs(0))
        before = jax.tree.leaves(nnx.state(layer))
        try:
            parallelize(layer, mesh, **given)
        except ValueError as error:
            yield f"refused, {name}", str(error)
        unchanged = all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(layer)), strict=True))
        yield f"unchanged, {name}", unchanged and layer.mesh_part is None


def placements() -> Iterator[tuple[str, Any]]:
    """For the test that compares them with gqa_torch's."""
    config = model("norms with biases", 2).config
    found = shardings(config, mesh_of(2, 2), tensor="tensor", data="data")
    yield "placements", {name: [str(axis) for axis in place.spec] for name, place in found.items()}


def example() -> Iterator[tuple[str, Any]]:
    """That of docs/scale.md, as it is there."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(block_starting(ROOT / "docs" / "scale.md", "# on_devices.py"), {})
    yield "example", json.loads(printed.getvalue())


def main(folder: Path, paths: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    found: dict[str, Any] = {}
    checks = (gradients, blocked, programs, texts, layer_calls, contexts, refusals, placements, example)
    for each in (lambda: checkpoints(folder), lambda: reading(paths), *checks):
        start = time.process_time()
        found |= dict(each())
        print(each.__name__, time.process_time() - start)
    (folder / "found.json").write_text(json.dumps(found))


main(*map(Path, sys.argv[1:]))

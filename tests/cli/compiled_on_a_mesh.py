"""Run by test_plan.py: a model on four forced devices; prints its config's plan beside what was measured."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import json
import re
from dataclasses import asdict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gqa_jax import Transformer
from gqa_jax.model import parameter
from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.mesh_plan import Mesh, mesh_plan
from gqa_spec.placement import cut_axes

LAYER = AttentionConfig(embed_dim=32, num_heads=8, num_kv_heads=4, causal=True, rope=RopeConfig())
CONFIG = ModelConfig(attention=(LAYER,) * 3, feed_forward_size=64, vocab_size=64, max_length=32)
B, T = 2, 8

mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))
model = Transformer(CONFIG, rngs=nnx.Rngs(0)).eval()
local_bytes = 0
for name, axis in cut_axes(CONFIG, 4).items():
    variable, transposed = parameter(model, name)
    x = variable.get_value()
    names = [None] * x.ndim
    if axis is not None:
        names[x.ndim - 1 - axis if transposed else axis] = "tensor"
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names)))
    variable.set_value(placed)
    local_bytes += placed.addressable_shards[0].data.nbytes

graph, state = nnx.split(model)
forward = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))
program = forward.lower(state, jnp.zeros((B, T), jnp.int32)).compile().as_text()
reduced = re.findall(r"= f32\[([\d,]+)\]\S* all-reduce(?:-start)?\(", program)
print(
    json.dumps(
        {
            "plan": asdict(mesh_plan(CONFIG, Mesh(tensor=4), length=T, element=4)),
            "local_bytes": local_bytes,
            "reduced": [[int(size) for size in shape.split(",")] for shape in reduced],
            "all_gathers": len(re.findall(r" all-gather(?:-start)?\(", program)),
        }
    )
)

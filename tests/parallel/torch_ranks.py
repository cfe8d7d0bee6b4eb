"""What each of four processes does in the tests of gqa_torch.parallel: one start for all of them, since it takes long.

Results are written by rank 0, as JSON: name of a check -> the largest relative difference, or whatever it found.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_torch import GroupedQueryAttention, Transformer
from gqa_torch.parallel import from_checkpoint, parallelize
from gqa_torch.parts import whole
from tests.docs.documents import ROOT, block_starting

RANKS = 4
MESHES = ((4, 1), (2, 2), (1, 4))
KV_HEADS = (8, 4, 2, 1)
TOKENS = torch.arange(4 * 7).reshape(4, 7) % 20
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
CONTEXTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 5},
    "chunk, softcap": {"chunk": 6, "softcap": 3.0},
    "sinks, window": {"window": 9, "sinks": True},
    "both sides": {"causal": False},
}


def attention(num_kv_heads: int, **settings: Any) -> AttentionConfig:
    sizes: dict[str, Any] = {"embed_dim": 24, "num_heads": 8, "num_kv_heads": num_kv_heads, "head_dim": 6}
    return AttentionConfig(**sizes | {"causal": True} | settings)


def drawn(module: Any) -> Any:
    """The same weights on every rank, no norm weight 1 and no bias 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def model(name: str, num_kv_heads: int) -> Transformer:
    of_layers, of_model = MODELS[name]
    layer = attention(num_kv_heads, **of_layers)
    config = ModelConfig(attention=(layer, layer), feed_forward_size=16, vocab_size=20, **of_model)
    return drawn(Transformer(config, dtype=torch.float64))


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((whole(got.detach()) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))


def apart(got: torch.nn.Module, wanted: torch.nn.Module) -> float:
    """The gradients of all parameters."""
    return max(
        difference(mine.grad, theirs.grad) for mine, theirs in zip(got.parameters(), wanted.parameters(), strict=True)
    )


def mine(mesh: DeviceMesh) -> torch.Tensor:
    return TOKENS.chunk(mesh["data"].size())[mesh["data"].get_local_rank()]


def axes(mesh: DeviceMesh) -> dict[str, str | None]:
    return {"tensor": "tensor", "data": "data" if mesh["data"].size() > 1 else None}


def gradients(mesh: DeviceMesh) -> Iterator[tuple[str, Any]]:
    """36 configurations: gradients, and for one model each the text and the weights that come back."""
    for num_kv_heads in KV_HEADS:
        for name in MODELS:
            one, cut = (model(name, num_kv_heads) for _ in range(2))
            parallelize(cut, mesh, **axes(mesh))
            for each, tokens in ((one, TOKENS), (cut, mine(mesh))):
                torch.manual_seed(1)
                trained = each if name == "plain" or mesh["data"].size() == 1 else each.eval()
                (trained(tokens) ** 2).mean().backward()
            yield f"gradients, {name}, K = {num_kv_heads}", apart(cut, one)
            if name == "every setting":
                prompts = [[1, 2, 3], [4, 5]]
                yield f"text, K = {num_kv_heads}", cut.eval().generate(prompts, 5) == one.eval().generate(prompts, 5)
                back = cut.export_weights()
                yield f"weights, K = {num_kv_heads}", all((back[n] == x).all() for n, x in one.export_weights().items())


def steps(mesh: DeviceMesh) -> Iterator[tuple[str, Any]]:
    """Five steps of SGD with clipping; a rank's own gradients would let whole weights drift apart."""
    one, cut = model("every setting", 1), model("every setting", 1)
    parallelize(cut, mesh, **axes(mesh))
    for each, tokens in ((one, TOKENS), (cut, mine(mesh))):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (each(tokens) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_(each.parameters(), 0.05)
            optimizer.step()
    yield "five steps", max(map(difference, cut.parameters(), one.parameters()))
    if mesh["data"].size() == 1:
        norm = cut.get_parameter("blocks.0.attention.q_norm.weight").to_local().detach()
        everywhere = [torch.empty_like(norm) for _ in range(RANKS)]
        dist.all_gather(everywhere, norm)
        yield "whole weights equal", all(torch.equal(everywhere[0], x) for x in everywhere)


def checkpoints(folder: Path) -> Iterator[tuple[str, Any]]:
    """Saved on one mesh by PyTorch's distributed checkpoint, loaded on others."""
    meshes = {f"{d} x {t}": init_device_mesh("cpu", (d, t), mesh_dim_names=("data", "tensor")) for d, t in MESHES}
    saved = model("every setting", 2)
    parallelize(saved, meshes["2 x 2"], **axes(meshes["2 x 2"]))
    dcp.save(saved.state_dict(), checkpoint_id=folder)
    wanted = model("every setting", 2).export_weights()
    for name, mesh in (*meshes.items(), ("one process", None)):
        other = Transformer(saved.config, dtype=torch.float64)
        if mesh is not None:
            parallelize(other, mesh, **axes(mesh))
        state = other.state_dict()
        dcp.load(state, checkpoint_id=folder)
        back = other.export_weights()
        yield f"checkpoint, 2 x 2 to {name}", all((back[n] == x).all() for n, x in wanted.items())


def loaded(mesh: DeviceMesh, folder: Path) -> Iterator[tuple[str, Any]]:
    """A GGUF file, read into the parts of each rank."""
    one = Transformer.from_checkpoint(folder, torch.float64)
    cut = from_checkpoint(folder, mesh, **axes(mesh), dtype=torch.float64)
    held = sum(p.to_local().numel() for p in cut.parameters())
    yield "share of the weights", held / sum(p.numel() for p in one.parameters())
    yield "text of a checkpoint", cut.generate([[1, 2, 3]], 9) == one.generate([[1, 2, 3]], 9)
    yield "weights of a checkpoint", all((cut.export_weights()[n] == x).all() for n, x in one.export_weights().items())


def missing(folder: Path) -> Iterator[tuple[str, Any]]:
    """Rank 1 does not have the file; no rank waits for it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    path = folder / "missing" if dist.get_rank() == 1 else folder / "gguf.gguf"
    try:
        from_checkpoint(path, mesh, tensor="tensor")
    except ValueError as error:
        sentences: list[Any] = [None] * RANKS
        dist.all_gather_object(sentences, str(error).removeprefix(str(folder)))
        yield "missing", sentences


def contexts(mesh: DeviceMesh) -> Iterator[tuple[str, Any]]:
    x = torch.randn(2, 12, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for name, settings in CONTEXTS.items():
        config = attention(2, rope=RopeConfig(), **settings)
        one, cut = (drawn(GroupedQueryAttention.from_config(config, dtype=torch.float64)) for _ in range(2))
        parallelize(cut, mesh, context="context")
        part = x.chunk(RANKS, dim=1)[dist.get_rank()]
        output, _ = cut(part, need_weights=False)
        wanted, _ = one(x)
        yield f"context, {name}", difference(output, wanted.chunk(RANKS, dim=1)[dist.get_rank()])
        (output**2).sum().backward()
        (wanted**2).sum().backward()
        for parameter in cut.parameters():
            dist.all_reduce(parameter.grad)
        yield f"gradients in context, {name}", apart(cut, one)


def refusals(mesh: DeviceMesh) -> Iterator[tuple[str, Any]]:
    """What is refused leaves the module as it was."""
    bad: dict[str, tuple[AttentionConfig, dict[str, Any]]] = {
        "N": (attention(3, num_heads=6), {"tensor": "tensor"}),
        "rms_full": (attention(8, qk_norm="rms_full"), {"tensor": "tensor"}),
        "axis": (attention(8), {"tensor": "model"}),
        "none": (attention(8), {}),
    }
    for name, (config, given) in bad.items():
        layer = GroupedQueryAttention.from_config(config)
        before = list(layer.parameters())
        try:
            parallelize(layer, mesh, **given)
        except ValueError as error:
            yield f"refused, {name}", str(error)
        yield f"unchanged, {name}", all(a is b for a, b in zip(before, layer.parameters(), strict=True))
    layer = GroupedQueryAttention.from_config(attention(2))
    plan: dict[str, Any] = {f"{name}_proj": ColwiseParallel() for name in "qkv"} | {"o_proj": RowwiseParallel()}
    parallelize_module(layer, mesh["tensor"], plan)
    with suppress(ValueError):
        layer(torch.randn(1, 3, 24))
        yield "a plan without parallelize", "no error"


def example() -> Iterator[tuple[str, Any]]:
    """That of docs/scale.md, as it is there."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(block_starting(ROOT / "docs" / "scale.md", "# on_ranks.py"), {})
    yield "example", json.loads(printed.getvalue())


def work(rank: int, port: int, folder: Path, checkpoints_of_llama: Path) -> None:
    """One process: all checks, in the same order as in the others."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(minutes=5))
    found: dict[str, Any] = {}
    for d, t in MESHES:
        mesh = init_device_mesh("cpu", (d, t), mesh_dim_names=("data", "tensor"))
        checks: list[Callable[[DeviceMesh], Iterator[tuple[str, Any]]]] = [gradients, steps]
        checks += [refusals] if t == RANKS else []
        checks.append(partial(loaded, folder=checkpoints_of_llama / "gguf.gguf"))
        for each in checks:
            found |= {f"{d} x {t}: {name}": result for name, result in each(mesh)}
    found |= dict(contexts(init_device_mesh("cpu", (RANKS,), mesh_dim_names=("context",))))
    found |= dict(checkpoints(folder / "checkpoint"))
    found |= dict(missing(checkpoints_of_llama))
    found |= dict(example())
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()

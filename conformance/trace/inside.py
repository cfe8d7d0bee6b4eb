"""Inside one block of a transformers model and of ours: the first stage at which they differ.

Both read their own state before the block, which agree. The stages of attention are those of our `trace` on what the
other side's attention reads, beside what its submodules give, what it hands to its kernel, and its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from conformance.trace.foreign import Apart, compare
from gqa_weights.families.tensors import TensorNames

Array = np.ndarray
# Of attention, the stages that submodules of the same names give, and those that the kernel is given.
PROJECTED = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
KERNEL = {"q_rope": "query", "k_rope": "key"}
AROUND = ("attention_post_norm", "feed_forward_norm", "feed_forward", "feed_forward_post_norm")


@dataclass
class Call:
    """The last call of a module: its first argument and its first result."""

    input: Any = None
    output: Any = None


@contextmanager
def captured(model: Any, names: Sequence[str]) -> Iterator[dict[str, Call]]:
    """The calls of submodules, by name, filled while the model runs; without names that the model does not have."""
    modules = dict(model.named_modules())
    calls = {name: Call() for name in names if name in modules}
    handles = [modules[name].register_forward_hook(_hook(call), with_kwargs=True) for name, call in calls.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _hook(call: Call) -> Any:
    def hook(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
        call.input = arguments[0] if arguments else keywords.get("hidden_states")
        call.output = result[0] if isinstance(result, tuple) else result

    return hook


def first_stage(ours: Any, theirs: Any, tokens: Array, number: int, names: TensorNames, dtype: str) -> Apart | None:
    """The first stage of block `number` that differs, None where all that both show agree.

    Args:
        ours: gqa_torch's Transformer.
        theirs: A model of transformers with eager attention.
        tokens: What both read, (B, T).
        number: Of the block.
        names: The family's names of its modules.
        dtype: What both compute in.
    """
    return next((found for found in _stages(ours, theirs, tokens, number, names, dtype) if not found.same), None)


def _stages(ours: Any, theirs: Any, tokens: Array, number: int, names: TensorNames, dtype: str) -> Iterator[Apart]:
    import torch

    from gqa_torch.integrations.transformers import recorded_stages

    block, own = names.block.format(number), f"blocks.{number}."
    places = _places(names)
    attention = f"{block}{names.attention}".removesuffix(".")
    inside = {stage: f"{attention}.{stage}" for stage in PROJECTED}
    wanted = [*(block + name for name in places.values()), attention, *inside.values()]
    with torch.no_grad():
        with captured(theirs, wanted) as others:
            eager = theirs(torch.from_numpy(tokens), output_attentions=True).attentions
        theirs.set_attn_implementation("gqa")
        with recorded_stages() as recorded:
            theirs(torch.from_numpy(tokens))
        theirs.set_attn_implementation("eager")
        with captured(ours, [f"{own}attention", *(own + name for name in places)]) as mine:
            ours(torch.from_numpy(tokens))
        traced = ours.blocks[number].attention.trace(others[attention].input)

    def beside(stage: str) -> Iterator[Apart]:
        if own + stage in mine and block + places.get(stage, "") in others:
            yield compare(stage, _numpy(mine[own + stage].output), _numpy(others[block + places[stage]].output), dtype)

    yield from beside("attention_norm")
    kernel = recorded[number] if number < len(recorded) else {}
    rows = {**{stage: others[name].output for stage, name in inside.items() if name in others}}
    rows |= {stage: kernel[name] for stage, name in KERNEL.items() if name in kernel and stage in traced}
    if names.table.pairing not in (None, "half"):  # our rows are in another order, of the same heads
        rows = {stage: x for stage, x in rows.items() if stage == "v_proj"}
    weights = eager[number] if eager and number < len(eager) else None
    for stage, other in {**rows, "weights": weights, "output": others[attention].output}.items():
        if other is not None and stage in traced:
            shaped = _as_heads(_numpy(other), traced[stage].shape)
            if shaped is not None:
                yield compare(f"attention {stage}", _numpy(traced[stage]), shaped, dtype)
    for stage in AROUND:
        yield from beside(stage)


def _places(names: TensorNames) -> dict[str, str]:
    """Our modules of a block -> the family's, attention and experts apart."""
    places = {name: module for name, module in names.modules.items() if name.endswith("norm")}
    down = names.modules.get("feed_forward.down", "").rpartition(".")[0]
    return {**places, "feed_forward": down} if down else places


def _as_heads(x: Array, shape: tuple[int, ...]) -> Array | None:
    """An array of the other side in the shape of ours; None where it holds something else, such as fused heads."""
    if x.shape == shape:
        return x
    if x.ndim == 3 and len(shape) == 4 and x.shape[2] == shape[1] * shape[3]:
        return rearrange(x, "B T (n H) -> B n T H", n=shape[1])
    if x.ndim == 4 and (x.shape[0], x.shape[2], x.shape[1], x.shape[3]) == shape:
        return rearrange(x, "B T n H -> B n T H")
    return None


def _numpy(x: Any) -> Array:
    array: Array = x.detach().cpu().numpy()
    return array

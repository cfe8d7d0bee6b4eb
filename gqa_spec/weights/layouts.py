"""How other implementations store one layer's weights, as invertible einops patterns over the axis alphabet.

A layout is a table of rules. A rule names one foreign tensor and the canonical tensors in it; each canonical tensor is
rearranged by its pattern (read left to right: canonical -> foreign), then the pieces are joined along `axis`. Read from
right to left the same table takes foreign weights apart, so both directions are exact by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from gqa_spec import checks
from gqa_spec.config import AttentionConfig
from gqa_spec.weights.names import symbolic_shapes, weight_shapes

Weights = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Rule:
    """One foreign tensor: the canonical tensors it holds, each with its einops pattern, joined along `axis`."""

    foreign: str
    pieces: tuple[tuple[str, str], ...]
    axis: int = 0


@dataclass(frozen=True)
class Layout:
    """A named storage convention. `pairing` says which RoPE pairing the rows have: "as is" keeps the config's."""

    name: str
    rules: tuple[Rule, ...]
    pairing: str = "as is"


def _each(patterns: Mapping[str, tuple[str, str]]) -> tuple[Rule, ...]:
    """One foreign tensor for each canonical one: canonical -> (foreign, pattern)."""
    return tuple(Rule(foreign, ((name, pattern),)) for name, (foreign, pattern) in patterns.items())


CANONICAL = Layout(
    "canonical",
    _each({
        "q_proj.weight": ("q_proj.weight", "NH D -> NH D"),
        "q_proj.bias": ("q_proj.bias", "NH -> NH"),
        "k_proj.weight": ("k_proj.weight", "KH E -> KH E"),
        "k_proj.bias": ("k_proj.bias", "KH -> KH"),
        "v_proj.weight": ("v_proj.weight", "KV E -> KV E"),
        "v_proj.bias": ("v_proj.bias", "KV -> KV"),
        "o_proj.weight": ("o_proj.weight", "D NV -> D NV"),
        "o_proj.bias": ("o_proj.bias", "D -> D"),
        "q_norm.weight": ("q_norm.weight", "W -> W"),
        "k_norm.weight": ("k_norm.weight", "W -> W"),
        "sinks": ("sinks", "N -> N"),
    }),
)  # fmt: skip

TORCH_MHA = Layout(
    "torch.nn.MultiheadAttention",
    (
        Rule(
            "in_proj_weight",
            (("q_proj.weight", "NH D -> NH D"), ("k_proj.weight", "KH D -> KH D"), ("v_proj.weight", "KV D -> KV D")),
        ),
        Rule("in_proj_bias", (("q_proj.bias", "NH -> NH"), ("k_proj.bias", "KH -> KH"), ("v_proj.bias", "KV -> KV"))),
        Rule("out_proj.weight", (("o_proj.weight", "D NV -> D NV"),)),
        Rule("out_proj.bias", (("o_proj.bias", "D -> D"),)),
    ),
)

FLAX_NNX = Layout(
    "flax.nnx.MultiHeadAttention",
    _each({
        "q_proj.weight": ("query.kernel", "(N H) D -> D N H"),
        "q_proj.bias": ("query.bias", "(N H) -> N H"),
        "k_proj.weight": ("key.kernel", "(K H) E -> E K H"),
        "k_proj.bias": ("key.bias", "(K H) -> K H"),
        "v_proj.weight": ("value.kernel", "(K Hv) E -> E K Hv"),
        "v_proj.bias": ("value.bias", "(K Hv) -> K Hv"),
        "o_proj.weight": ("out.kernel", "D (N Hv) -> N Hv D"),
        "o_proj.bias": ("out.bias", "D -> D"),
    }),
)  # fmt: skip

GGUF_LLAMA = Layout(
    "gguf.llama",
    _each({
        "q_proj.weight": ("attn_q.weight", "(N two half) D -> (N half two) D"),
        "k_proj.weight": ("attn_k.weight", "(K two half) E -> (K half two) E"),
        "v_proj.weight": ("attn_v.weight", "KV E -> KV E"),
        "o_proj.weight": ("attn_output.weight", "D NV -> D NV"),
    }),
    pairing="interleaved",
)  # fmt: skip

LAYOUTS = {layout.name: layout for layout in (CANONICAL, TORCH_MHA, FLAX_NNX, GGUF_LLAMA)}


def from_canonical(layout: Layout, weights: Weights, config: AttentionConfig) -> dict[str, np.ndarray[Any, Any]]:
    """Canonical weights -> the layout's own names and shapes, bit for bit.

    Raises ValueError where weights do not fit the config, or the layout has no place for one of them.
    """
    shapes = weight_shapes(config)
    checks.weights(weights, shapes, symbolic_shapes(config), dtype="float64")
    placed = {name for rule in layout.rules for name, _ in rule.pieces}
    homeless = [name for name in shapes if name not in placed]
    if homeless:
        raise ValueError(f"{layout.name}: has no place for {', '.join(homeless)}")
    sizes = _sizes(config)
    return {
        rule.foreign: np.concatenate(
            [_rearranged(weights[name], pattern, sizes) for name, pattern in rule.pieces], axis=rule.axis
        )
        for rule in _rules_that_are_on(layout, shapes)
    }


def to_canonical(layout: Layout, foreign: Weights, config: AttentionConfig) -> dict[str, np.ndarray[Any, Any]]:
    """The layout's own names and shapes -> canonical weights, bit for bit.

    Raises ValueError that names every missing, unexpected and misshapen tensor.
    """
    shapes, sizes = weight_shapes(config), _sizes(config)
    rules = _rules_that_are_on(layout, shapes)
    pieces = {rule.foreign: _piece_shapes(rule, shapes, sizes) for rule in rules}
    expected = {rule.foreign: _joined_shape(pieces[rule.foreign], rule.axis) for rule in rules}
    symbols = {rule.foreign: ", ".join(name for name, _ in rule.pieces) for rule in rules}
    checks.weights(foreign, expected, symbols, dtype="float64")
    canonical = {}
    for rule in rules:
        ends = np.cumsum([shape[rule.axis] for shape in pieces[rule.foreign]])[:-1]
        parts = np.split(np.asarray(foreign[rule.foreign]), ends, axis=rule.axis)
        for (name, pattern), part in zip(rule.pieces, parts, strict=True):
            canonical[name] = np.ascontiguousarray(_rearranged(part, _reversed(pattern), sizes))
    return {name: canonical[name] for name in shapes}


def _rules_that_are_on(layout: Layout, shapes: Mapping[str, Any]) -> list[Rule]:
    return [rule for rule in layout.rules if all(name in shapes for name, _ in rule.pieces)]


def _sizes(config: AttentionConfig) -> dict[str, int]:
    return {**config.axes, "two": 2}


def _piece_shapes(rule: Rule, shapes: Mapping[str, Any], sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The foreign shape of each piece, read off a stand-in of that shape that takes no memory."""
    stand_ins = [(np.broadcast_to(np.int8(0), shapes[name]), pattern) for name, pattern in rule.pieces]
    return [_rearranged(stand_in, pattern, sizes).shape for stand_in, pattern in stand_ins]


def _joined_shape(pieces: list[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    return (*pieces[0][:axis], sum(piece[axis] for piece in pieces), *pieces[0][axis + 1 :])


def _reversed(pattern: str) -> str:
    left, right = pattern.split("->")
    return f"{right.strip()} -> {left.strip()}"


def _rearranged(array: Any, pattern: str, sizes: Mapping[str, int]) -> Any:
    """einops.rearrange, given the sizes of those named axes that the pattern splits or merges."""
    names = pattern.replace("(", " ").replace(")", " ").replace("->", " ").split()
    return rearrange(array, pattern, **{name: sizes[name] for name in set(names) if name in sizes})

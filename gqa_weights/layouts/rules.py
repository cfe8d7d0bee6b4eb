"""How a layout is read: one table of einops patterns, canonical weights to foreign ones and back, bit for bit.

A layout is a table of rules. A rule names one foreign tensor and the canonical tensors in it: each is rearranged by its
pattern, they are joined along `axis`, and the whole is rearranged by `then`. Patterns are read left to right, canonical
to foreign; read right to left they take the foreign tensor apart, so that each direction undoes the other.

What a canonical name means is not repeated in each table: the rows that RoPE rotates, of weights, biases and norms, are
re-paired and norm weights shifted by 1 here, where a layout's `pairing` and `norm_factor` differ from the config's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from einops import rearrange

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, symbolic_shapes, weight_shapes
from gqa_spec.rope import Pairing
from gqa_weights.layouts.pairing import rotary_order

Array = np.ndarray
Shape = tuple[int, ...]
Weights = Mapping[str, Array]

NORMS = ("q_norm.weight", "k_norm.weight")


@dataclass(frozen=True)
class Rule:
    """One foreign tensor: the canonical tensors in it, each with its einops pattern, joined along `axis`.

    then: a pattern over the joined tensor. when: a condition as in `Layout.requires`; the rule is left out unless it
    holds.
    """

    foreign: str
    pieces: tuple[tuple[str, str], ...]
    axis: int = 0
    then: str = "... -> ..."
    when: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.pieces)


@dataclass(frozen=True)
class Layout:
    """A named storage convention.

    pairing: how RoPE pairs the stored rows, None for as the config says. norm_factor: whether the implementation
    multiplies by a stored norm weight w or by 1 + w, None for as the config says. norm_over: what its QK-norm runs
    over, each "head" or "all" heads of a token, None for as the config says. head_order: the order of the query heads.
    requires: equations over the axis alphabet and the config's flags, such as "N * H == D", that every config it can
    express fulfils. refuses: weights and settings of the implementation that no canonical weight expresses, and why.
    """

    name: str
    rules: tuple[Rule, ...]
    pairing: Pairing | None = None
    norm_factor: Literal["w", "1 + w"] | None = None
    norm_over: Literal["head", "all"] | None = None
    head_order: Literal["contiguous", "strided"] = "contiguous"
    requires: tuple[str, ...] = ()
    refuses: Mapping[str, str] = field(default_factory=dict, hash=False)


def from_canonical(layout: Layout, weights: Weights, config: AttentionConfig) -> dict[str, Array]:
    """Canonical weights -> the layout's own names and shapes.

    Args:
        layout: One of `LAYOUTS`.
        weights: Canonical names -> arrays, every weight of the config and no other.
        config: The layer.

    Returns:
        Foreign names -> arrays, dtypes kept: bit for bit, but for `rounded_weights`.

    Raises:
        ValueError: Where weights do not fit the config, or the layout cannot express it.
        TypeError: For different dtypes in one foreign tensor.
    """
    weights = dict(weights)  # a checkpoint reads anew at each access
    checks.weights(weights, weight_shapes(config), symbolic_shapes(config), dtype="float64")
    names = foreign_shapes(layout, config)
    return {name: np.ascontiguousarray(foreign_tensor(layout, name, weights, config)) for name in names}


def to_canonical(
    layout: Layout, foreign: Weights, config: AttentionConfig, settings: Mapping[str, Any] | None = None
) -> dict[str, Array]:
    """The layout's own names and shapes -> canonical weights in the config's RoPE pairing.

    Args:
        layout: One of `LAYOUTS`.
        foreign: Foreign names -> arrays, every tensor that the layout has for the config and no other.
        config: The layer.
        settings: Arguments of the foreign module that its weights do not show, such as `{"add_zero_attn": True}`.

    Returns:
        Canonical names -> arrays, dtypes kept.

    Raises:
        ValueError: Names every missing, unexpected and misshapen tensor, or what the layout refuses.
    """
    foreign = dict(foreign)
    given = foreign | {name: x for name, x in (settings or {}).items() if x}
    checks.not_refused(layout.name, given, layout.refuses)
    symbols = {name: ", ".join(inside) for name, inside in sources(layout, config).items()}
    checks.weights(foreign, foreign_shapes(layout, config), symbols, dtype="float64")
    names = weight_shapes(config)
    return {name: np.ascontiguousarray(canonical_tensor(layout, name, foreign, config)) for name in names}


def foreign_shapes(layout: Layout, config: AttentionConfig) -> dict[str, Shape]:
    """Foreign name -> shape of every tensor that a layer of this config has in this layout.

    Raises:
        ValueError: Where the layout cannot express the config.
    """
    return {rule.foreign: _foreign_shape(rule, config) for rule in _rules(layout, config)}


def sources(layout: Layout, config: AttentionConfig) -> dict[str, tuple[str, ...]]:
    """Foreign name -> the canonical names in it; each canonical name is in exactly one."""
    return {rule.foreign: rule.names for rule in _rules(layout, config)}


def foreign_tensor(layout: Layout, name: str, weights: Weights, config: AttentionConfig) -> Array:
    """One foreign tensor; of `weights` only the canonical tensors in it are read.

    It may be a view, transposed: a writer that copies it in blocks is several times as fast as one copy of the whole.
    """
    rule = next(rule for rule in _rules(layout, config) if rule.foreign == name)
    inside = {ours: np.asarray(weights[ours]) for ours in rule.names}
    checks.one_dtype(name, {ours: x.dtype.name for ours, x in inside.items()})
    pieces = [_rearranged(_as_stored(layout, ours, inside[ours], config), p, config) for ours, p in rule.pieces]
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=rule.axis)
    return _rearranged(joined, rule.then, config)


def canonical_tensor(layout: Layout, name: str, foreign: Weights, config: AttentionConfig) -> Array:
    """One canonical tensor; of `foreign` only the tensor that holds it is read. It may be a view, as a foreign one."""
    rule = next(rule for rule in _rules(layout, config) if name in rule.names)
    joined = _rearranged(np.asarray(foreign[rule.foreign]), _reversed(rule.then), config)
    place = rule.names.index(name)
    sizes = [shape[rule.axis] for shape in _piece_shapes(rule, config)]
    piece = np.split(joined, np.cumsum(sizes)[:-1], axis=rule.axis)[place]
    stored = _rearranged(piece, _reversed(rule.pieces[place][1]), config)
    return _as_canonical(layout, name, stored, config)


def rounded_weights(layout: Layout, config: AttentionConfig) -> tuple[str, ...]:
    """The canonical weights that 1 is added to or taken from, so that they keep their value but for one rounding.

    All others pass bit for bit. There and back, error <= 1 ulp of the larger of w and 1 + w.
    """
    return tuple(name for name in weight_shapes(config) if _shift(layout, name, config))


def conventions(layout: Layout, config: AttentionConfig) -> dict[str, Any]:
    """What a reader of the stored weights must know, in plain values: for manifests and tables."""
    stored = layout.norm_factor or _norm_factor(config)
    return {
        "layout": layout.name,
        "pairing": config.rope and (layout.pairing or config.rope.pairing),
        "head_order": layout.head_order,
        "fused": {
            rule.foreign: " | ".join(rule.names) + (" for each KV head" if rule.then.startswith("K ") else "")
            for rule in _rules(layout, config)
            if len(rule.pieces) > 1
        },
        "norm_factor": stored if config.qk_norm else None,
        "rounded": list(rounded_weights(layout, config)),
    }


def _rules(layout: Layout, config: AttentionConfig) -> list[Rule]:
    """The rules of the tensors that a layer of this config has."""
    for condition in layout.requires:
        checks.expressible(layout.name, condition, _holds(condition, config), _values(condition, config))
    checks.expressible(
        layout.name, f"a QK-norm over {layout.norm_over}", _norm_fits(layout, config), {"qk_norm": config.qk_norm}
    )
    shapes = weight_shapes(config)
    rules = [rule for rule in layout.rules if rule.when is None or _holds(rule.when, config)]
    complete = [rule for rule in rules if all(name in shapes for name in rule.names)]
    checks.placed(layout.name, shapes, {name for rule in complete for name in rule.names})
    return complete


def _norm_fits(layout: Layout, config: AttentionConfig) -> bool:
    over = "all" if config.qk_norm == "rms_full" else "head"
    return config.qk_norm is None or layout.norm_over in (None, over)


def _holds(condition: str, config: AttentionConfig) -> bool:
    """ "N * H == D" or "E != D": a product on the left, one name on the right."""
    left, sign, right = condition.rsplit(maxsplit=2)
    values = _values(condition, config)
    equal = prod(values[factor] for factor in left.split(" * ")) == values[right]
    return equal if sign == "==" else not equal


def _values(condition: str, config: AttentionConfig) -> dict[str, int]:
    known = config.axes | {"qkv_bias": config.qkv_bias, "out_bias": config.out_bias}
    return {name: known[name] for name in condition.split() if name in known}


# --- what a canonical name means -----------------------------------------------------------------------------------


def _as_stored(layout: Layout, name: str, x: Array, config: AttentionConfig) -> Array:
    if config.rope is not None:
        x = _paired(name, x, config, config.rope.pairing, layout.pairing)
    return _shifted(x, _shift(layout, name, config))


def _as_canonical(layout: Layout, name: str, x: Array, config: AttentionConfig) -> Array:
    if config.rope is not None:
        x = _paired(name, x, config, layout.pairing, config.rope.pairing)
    return _shifted(x, -_shift(layout, name, config))


def _paired(name: str, x: Array, config: AttentionConfig, given: Pairing | None, wanted: Pairing | None) -> Array:
    """The rotary rows of each head reordered, where the canonical shape has the axis H in front."""
    if given is None or wanted is None or given == wanted or "H" not in _row_axes(name, config):
        return x
    heads: Array = rearrange(x, "(heads H) ... -> heads H ...", H=config.head_dim)
    return rearrange(heads[:, rotary_order(config, wanted)], "heads H ... -> (heads H) ...")


def _row_axes(name: str, config: AttentionConfig) -> list[str]:
    return symbolic_shapes(config)[name].split(",")[0].split("*")


def _norm_factor(config: AttentionConfig) -> str:
    return "1 + w" if config.qk_norm == "rms_plus_one" else "w"


def _shift(layout: Layout, name: str, config: AttentionConfig) -> int:
    """What is added to a canonical norm weight to store it."""
    if name not in NORMS or layout.norm_factor in (None, _norm_factor(config)):
        return 0
    return 1 if layout.norm_factor == "w" else -1


def _shifted(x: Array, by: int) -> Array:
    return x + x.dtype.type(by) if by else x


# --- patterns ------------------------------------------------------------------------------------------------------


def _foreign_shape(rule: Rule, config: AttentionConfig) -> Shape:
    pieces = _piece_shapes(rule, config)
    rows = sum(piece[rule.axis] for piece in pieces)
    joined = (*pieces[0][: rule.axis], rows, *pieces[0][rule.axis + 1 :])
    return _rearranged(_stand_in(joined), rule.then, config).shape


def _piece_shapes(rule: Rule, config: AttentionConfig) -> list[Shape]:
    shapes = weight_shapes(config)
    return [_rearranged(_stand_in(shapes[name]), pattern, config).shape for name, pattern in rule.pieces]


def _stand_in(shape: Shape) -> Array:
    """An array of that shape that takes no memory, to read the shapes of patterns off."""
    return np.broadcast_to(np.int8(0), shape)


def _reversed(pattern: str) -> str:
    left, right = pattern.split("->")
    return f"{right.strip()} -> {left.strip()}"


def _rearranged(array: Array, pattern: str, config: AttentionConfig) -> Array:
    """einops.rearrange, given the sizes of those named axes that the pattern splits or merges."""
    names = pattern.replace("(", " ").replace(")", " ").replace("->", " ").split()
    return rearrange(array, pattern, **{name: size for name, size in config.axes.items() if name in names})

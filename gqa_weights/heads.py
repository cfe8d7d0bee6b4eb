"""Head surgery: one layer's canonical weights and config -> another layer's.

Which tensor counts which heads along which axis is read off the table of symbolic shapes, so that biases, full-width
norms and sinks go along. Tensors that do not change come back as they are, not as copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import lcm
from typing import Any, Literal

import numpy as np
from einops import rearrange, repeat

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, symbolic_shapes, weight_shapes
from gqa_spec.rope import Pairing
from gqa_weights.layouts.pairing import rotary_order

Array = np.ndarray
Weights = Mapping[str, Array]
Layer = tuple[dict[str, Array], AttentionConfig]
PoolMethod = Literal["mean", "first", "random"]


def pool_kv_heads(
    weights: Weights,
    config: AttentionConfig,
    num_kv_heads: int,
    method: PoolMethod = "mean",
    rng: np.random.Generator | None = None,
) -> Layer:
    """K KV heads -> K' = num_kv_heads, each made from K / K' neighbours (Ainslie et al. 2023, arXiv 2305.13245). Lossy.

    Shapes: k_proj.weight (K*H, E) -> (K'*H, E); v_proj.weight, biases and a full-width k_norm.weight alike. dtypes are
    kept.

    Args:
        weights: The layer's canonical weights.
        config: The layer's settings.
        num_kv_heads: K', the KV heads afterwards.
        method: "mean" of the neighbours, in float64 and rounded once, so that equal heads give exactly that head; the
            "first" of them; or "random", fresh heads, normal with each tensor's own mean and deviation, as a baseline.
        rng: The generator that "random" draws from.

    Returns:
        The changed weights and config.

    Raises:
        ValueError: Unless K' divides K, and for weights that do not fit the config.
        TypeError: For "random" without a generator.
    """
    _check(weights, config)
    checks.pooled_heads(num_kv_heads, config.num_kv_heads)
    checks.choice("method", method, ("mean", "first", "random"))
    if method == "random":
        checks.instance("rng", rng, np.random.Generator)
    pooled: dict[str, Callable[[Array], Array]] = {
        "mean": _mean,
        "first": lambda groups: groups[:, 0],
        "random": lambda groups: _random_heads(groups, rng),
    }

    def pool(x: Array) -> Array:
        groups = in_groups(x, num_kv_heads, config.num_kv_heads)
        return rearrange(pooled[method](groups).astype(x.dtype), "heads rows ... -> (heads rows) ...")

    return _changed(weights, config, "K", pool), replace(config, num_kv_heads=num_kv_heads)


def expand_kv_heads(weights: Weights, config: AttentionConfig, num_kv_heads: int | None = None) -> Layer:
    """K KV heads -> K' = num_kv_heads, each repeated K' / K times in place. Lossless.

    Attention weights and outputs stay what they were; with `rms_full` up to rounding, since the norm's mean then runs
    over each head K' / K times. Shapes and dtypes as in `pool_kv_heads`, which undoes it bit for bit.

    Args:
        weights: The layer's canonical weights.
        config: The layer's settings.
        num_kv_heads: K', the KV heads afterwards; N when None, which is MHA.

    Returns:
        The changed weights and config.

    Raises:
        ValueError: Unless K divides K' and K' divides N, and for weights that do not fit the config.
    """
    _check(weights, config)
    K, expanded = config.num_kv_heads, config.num_heads if num_kv_heads is None else num_kv_heads
    checks.expanded_heads(expanded, K, config.num_heads)

    def expand(x: Array) -> Array:
        return repeat(x, "(heads rows) ... -> (heads copies rows) ...", heads=K, copies=expanded // K)

    return _changed(weights, config, "K", expand), replace(config, num_kv_heads=expanded)


def replicate_kv_heads(weights: Weights, config: AttentionConfig, ranks: int) -> Layer:
    """Expand to the fewest KV heads that tensor-parallel ranks can share evenly: lcm(K, ranks).

    Args:
        weights: The layer's canonical weights.
        config: The layer's settings.
        ranks: The number of ranks.

    Returns:
        The changed weights and config.

    Raises:
        ValueError: Unless ranks divides N, and for weights that do not fit the config.
    """
    _check(weights, config)
    checks.head_ranks(0, ranks, config.num_heads)
    return expand_kv_heads(weights, config, lcm(config.num_kv_heads, ranks))


def slice_heads(weights: Weights, config: AttentionConfig, rank: int, ranks: int) -> Layer:
    """The layer of one tensor-parallel rank: N / ranks query heads and the KV heads that they read.

    KV heads are replicated first where `ranks` does not divide K. Every rank takes the whole input; the sum of their
    outputs is the whole layer's, and their weights side by side along N are its weights. Only rank 0 keeps o_proj.bias:
    the others have out_bias=False. Shapes: q_proj.weight (N*H / ranks, D), o_proj.weight (D, N*Hv / ranks), sinks
    (N / ranks,).

    Args:
        weights: The whole layer's canonical weights.
        config: Its settings.
        rank: Which part, 0 <= rank < ranks.
        ranks: The number of ranks.

    Returns:
        The part's weights and config.

    Raises:
        ValueError: Unless ranks divides N and 0 <= rank < ranks; for `rms_full`, whose norm needs all heads at once;
            and for weights that do not fit the config.
    """
    checks.head_ranks(rank, ranks, config.num_heads)
    checks.sliceable(config)
    whole, config = replicate_kv_heads(weights, config, ranks)
    part = dict(whole)
    for heads in ("N", "K"):
        for name, axis in _axes(config, heads):
            part[name] = np.split(whole[name], ranks, axis)[rank].copy()
    if rank > 0:
        part.pop("o_proj.bias", None)
    N, K = config.num_heads // ranks, config.num_kv_heads // ranks
    return part, replace(config, num_heads=N, num_kv_heads=K, out_bias=config.out_bias and rank == 0)


def convert_rope_pairing(weights: Weights, config: AttentionConfig, pairing: Pairing) -> Layer:
    """Re-pair RoPE: reorder the rotary rows of every query and key head, so that `pairing` rotates the same pairs.

    q_proj, k_proj, their biases and norms; rows past rotary_dim, values and outputs stay. There and back is the
    identity.

    Args:
        weights: The layer's canonical weights.
        config: The layer's settings.
        pairing: "half" or "interleaved", how RoPE pairs the rows afterwards.

    Returns:
        The changed weights and config.

    Raises:
        ValueError: For a config without rope, an unknown pairing, and weights that do not fit the config.
    """
    _check(weights, config)
    checks.rope_is_on("pairing", config.rope)
    checks.choice("pairing", pairing, ("half", "interleaved"))
    if config.rope is None or config.rope.pairing == pairing:
        return dict(weights), config
    order = rotary_order(config, pairing)

    def reorder(x: Array) -> Array:
        heads = rearrange(x, "(heads H) ... -> heads H ...", H=config.head_dim)
        return rearrange(heads[:, order], "heads H ... -> (heads H) ...")

    return _changed(weights, config, "H", reorder), replace(config, rope=replace(config.rope, pairing=pairing))


def in_groups(x: Array, num_groups: int, num_heads: int) -> Array:
    """(heads * rows, ...) -> (groups, heads of a group, rows, ...): groups are neighbours, as SPEC 1 reads them."""
    sizes = {"groups": num_groups, "heads": num_heads // num_groups}
    return rearrange(x, "(groups heads rows) ... -> groups heads rows ...", **sizes)


def _check(weights: Weights, config: AttentionConfig) -> None:
    checks.weights(weights, weight_shapes(config), symbolic_shapes(config), dtype="float64")


def _changed(
    weights: Weights, config: AttentionConfig, symbol: str, change: Callable[[Array], Array]
) -> dict[str, Any]:
    """`change` applied to every tensor with `symbol` in its rows; the others as they are."""
    return dict(weights) | {name: change(np.asarray(weights[name])) for name, _ in _axes(config, symbol)}


def _axes(config: AttentionConfig, symbol: str) -> Iterator[tuple[str, int]]:
    """Each tensor that has the symbol in its shape, and the axis where: N is in axis 1 of `D, N*Hv`."""
    for name, symbols in symbolic_shapes(config).items():
        for axis, factors in enumerate(symbols.strip(",").split(", ")):
            if symbol in factors.split("*"):
                yield name, axis


def _mean(groups: Array) -> Array:
    """As first + mean(head - first): a plain mean of equal heads misses them by a rounding in many places."""
    wide = groups.astype(np.float64)
    first = wide[:, 0]
    rest = (wide - first[:, None]).mean(axis=1)
    return np.where(rest == 0, first, first + rest)  # -0.0 + 0.0 would lose a sign


def _random_heads(groups: Array, rng: Any) -> Array:
    """Normal numbers in the place of one head of each group, with the mean and deviation of the whole tensor."""
    wide = groups.astype(np.float64)
    return rng.normal(wide.mean(), wide.std(), size=groups[:, 0].shape)

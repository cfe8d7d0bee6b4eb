"""Weights by their canonical names, in the layouts of other libraries, and with other numbers of heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gqa_spec.checks.arrays import WIDER, Shape, dtype_name
from gqa_spec.checks.values import integer


def weights(given: Mapping[str, Any], expected: Mapping[str, Shape], symbols: Mapping[str, str], dtype: str) -> None:
    """Every missing, extra and misshapen name at once, then every dtype that `dtype` cannot hold exactly."""
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} expected ({symbols[name]}) = {expected[name]}, got {tuple(given[name].shape)}"
        for name in expected
        if name in given and tuple(given[name].shape) != expected[name]
    ]
    if problems:
        raise ValueError(f"weights: {_listed(problems)}")
    narrow = [f"{name} is {dtype_name(x)}" for name, x in given.items() if dtype not in WIDER.get(dtype_name(x), ())]
    if narrow:
        raise TypeError(f"weights: expected dtypes that {dtype} holds exactly: {_listed(narrow)}")


def not_refused(layout: str, given: Iterable[str], refused: Mapping[str, str]) -> None:
    found = [f"{name}: {refused[name]}" for name in given if name in refused]
    if found:
        raise ValueError(f"{layout}: cannot express {_listed(found)}")


def expressible(layout: str, condition: str, holds: bool, values: Mapping[str, Any]) -> None:
    if not holds:
        got = ", ".join(f"{name} = {x}" for name, x in values.items())
        raise ValueError(f"{layout}: expected {condition}, got {got}")


def placed(layout: str, names: Iterable[str], places: Iterable[str]) -> None:
    unmapped_modules = [name for name in names if name not in places]
    if unmapped_modules:
        raise ValueError(f"{layout}: has no place for {', '.join(unmapped_modules)}")


def one_dtype(name: str, dtypes: Mapping[str, str]) -> None:
    """Tensors that are stored as one."""
    if len(set(dtypes.values())) > 1:
        got = ", ".join(f"{x} for {ours}" for ours, x in dtypes.items())
        raise TypeError(f"{name}: expected one dtype for the tensors in it, got {got}")


def pooled_heads(num_kv_heads: Any, heads: int) -> None:
    integer("num_kv_heads", num_kv_heads, symbol="K'", at_least=1)
    if heads % num_kv_heads:
        raise ValueError(f"num_kv_heads: expected K' to divide K = {heads}, got {num_kv_heads}")


def expanded_heads(num_kv_heads: Any, heads: int, num_heads: int) -> None:
    integer("num_kv_heads", num_kv_heads, symbol="K'", at_least=1)
    if num_kv_heads % heads or num_heads % num_kv_heads:
        raise ValueError(
            f"num_kv_heads: expected K = {heads} to divide K', and K' to divide N = {num_heads}, got {num_kv_heads}"
        )


def head_ranks(rank: Any, ranks: Any, num_heads: int) -> None:
    """One of `ranks` tensor-parallel parts, with as many query heads as every other."""
    integer("ranks", ranks, at_least=1)
    if num_heads % ranks:
        raise ValueError(f"ranks: expected ranks to divide N = {num_heads}, got {ranks}")
    integer("rank", rank, at_least=0)
    if rank >= ranks:
        raise ValueError(f"rank: expected rank < ranks = {ranks}, got {rank}")


def sliceable(config: Any) -> None:
    if config.qk_norm == "rms_full":
        raise ValueError(
            "qk_norm: expected a norm of each head, got 'rms_full', which is over all heads: "
            "a rank that holds some of them cannot compute it"
        )


def tensor_size(config: Any, tensor: Any, feed_forward_size: int | None = None) -> None:
    """How many parts a layer's heads, and its feed-forward, can be cut into."""
    integer("tensor", tensor, at_least=1)
    if tensor > 1:
        sliceable(config)
    heads, kv_heads = config.num_heads, config.num_kv_heads
    sizes = [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0) and (feed_forward_size or n) % n == 0
    ]
    if tensor not in sizes:
        feed_forward = "" if feed_forward_size is None else f" and F = {feed_forward_size}"
        raise ValueError(
            f"tensor: expected a size that divides N = {heads}{feed_forward}, and divides K = {kv_heads} or is a "
            f"multiple of it: one of {', '.join(map(str, sizes))}; got {tensor}"
        )


def rope_is_on(name: str, rope: Any) -> None:
    if rope is None:
        raise ValueError(f"{name}: expected a config with rope, got rope=None, which pairs nothing")


def _listed(problems: Iterable[str]) -> str:
    return "; ".join(problems)

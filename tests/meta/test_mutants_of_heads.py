"""Mutants of head surgery (RoPE pairing, head order, ranks, pooling): each is caught by the check that is for it."""

from dataclasses import replace

import einops
import numpy as np
import pytest

from gqa_spec import RopeConfig
from gqa_weights import heads
from tests.weights import test_heads as checks

right = {name: getattr(heads, name) for name in ("_axes", "slice_heads", "convert_rope_pairing", "rotary_order")}
BIASED = checks.layer_config(8, 4, qkv_bias=True, out_bias=True, rope=RopeConfig())
NORMED = checks.layer_config(8, 4, qk_norm="rms", rope=RopeConfig())
FULL_WIDTH = checks.layer_config(8, 4, qk_norm="rms_full", rope=RopeConfig())
GROUPS_OF_THREE = checks.layer_config(12, 4)
PARTIAL = checks.layer_config(8, 4, rope=RopeConfig(rotary_dim=6))


def strided_groups(x, num_groups, num_heads):
    """Heads 0, 2, 4 in one group and 1, 3, 5 in the other."""
    sizes = {"groups": num_groups, "heads": num_heads // num_groups}
    return einops.rearrange(x, "(heads groups rows) ... -> groups heads rows ...", **sizes)


def tiled_copies(x, pattern, **sizes):
    """All heads, then all of them once more, as np.tile gives."""
    return einops.repeat(x, pattern.replace("(heads copies rows)", "(copies heads rows)"), **sizes)


def plain_mean(groups):
    """The mean as a sum over a count, in float64."""
    return groups.astype(np.float64).mean(axis=1)


def narrow_mean(groups):
    """The mean in the tensor's own dtype."""
    return groups[:, 0] + (groups - groups[:, :1]).mean(axis=1)


def sum_for_mean(groups):
    """Never divided by the number of heads."""
    return groups.astype(np.float64).sum(axis=1)


def first_for_mean(groups):
    return groups[:, 0]


def forgetting(part):
    """The tensors of that part are left as they were."""

    def axes(config, symbol):
        return [(name, axis) for name, axis in right["_axes"](config, symbol) if part not in name]

    return axes


def first_kv_heads_for_all(weights, config, rank, ranks):
    """Every rank reads the KV heads of rank 0."""
    part, narrow = right["slice_heads"](weights, config, rank, ranks)
    first, _ = right["slice_heads"](weights, config, 0, ranks)
    return part | {name: x for name, x in first.items() if name.startswith(("k_proj", "v_proj"))}, narrow


def bias_on_every_rank(weights, config, rank, ranks):
    """Each rank adds o_proj's bias, so the sum has it `ranks` times."""
    part, _ = right["slice_heads"](weights, config, rank, ranks)
    first, narrow = right["slice_heads"](weights, config, 0, ranks)
    return {name: part.get(name, first[name]) for name in first}, narrow


def bias_on_no_rank(weights, config, rank, ranks):
    weights = weights | {"o_proj.bias": 0 * weights["o_proj.bias"]}
    return right["slice_heads"](weights, config, rank, ranks)


def ranks_in_reverse(weights, config, rank, ranks):
    """The first rank holds the last heads: the sum is right, the attention weights are in other places."""
    return right["slice_heads"](weights, config, ranks - 1 - rank, ranks)


def keys_in_as_many_heads_as_queries(weights, config, pairing):
    """k's rows are cut into N heads instead of K."""
    paired, other = right["convert_rope_pairing"](weights, config, pairing)
    pattern = "(N two pairs) E -> (N pairs two) E"
    wrong = einops.rearrange(weights["k_proj.weight"], pattern, N=config.num_heads, two=2)
    return paired | {"k_proj.weight": wrong}, other


def keys_in_groups(weights, config, pairing):
    """As llama.cpp once had it: k's rows are cut into N / K heads. Right where N / K = K."""
    paired, other = right["convert_rope_pairing"](weights, config, pairing)
    pattern = "(G two pairs) E -> (G pairs two) E"
    wrong = einops.rearrange(weights["k_proj.weight"], pattern, G=config.group_size, two=2)
    return paired | {"k_proj.weight": wrong}, other


def whole_head_paired(config, pairing):
    """Rows past rotary_dim are moved too."""
    pattern = "(two pairs) -> (pairs two)" if pairing == "interleaved" else "(pairs two) -> (two pairs)"
    return einops.rearrange(np.arange(config.head_dim), pattern, two=2)


def paired_the_other_way(config, pairing):
    """The inverse permutation."""
    return np.argsort(right["rotary_order"](config, pairing))


def pool(config=BIASED, dtype=np.float64):
    return lambda: checks.check_pooling_is_the_mean(config, dtype, 2)


def identity(config=BIASED, dtype=np.float64, more=8):
    return lambda: checks.check_expand_then_pool(config, dtype, more)


def expanded(config=BIASED):
    return lambda: checks.check_expanded_computes_the_same(config)


def ranks(config=BIASED):
    return lambda: checks.check_ranks_add_up(config, 4)


def paired(config=BIASED):
    return lambda: checks.check_pairing_computes_the_same(config)


MUTANTS = {  # name: (the function that is replaced, by what, the check)
    "strided groups": ("in_groups", strided_groups, pool()),
    "strided groups, seen by the identity": ("in_groups", strided_groups, identity()),
    "tiled copies": ("repeat", tiled_copies, expanded()),
    "tiled copies, seen by the identity": ("repeat", tiled_copies, identity()),
    "plain mean": ("_mean", plain_mean, identity(GROUPS_OF_THREE, more=12)),
    "mean in float16": ("_mean", narrow_mean, pool(checks.layer_config(8, 8), np.float16)),
    "sum for mean": ("_mean", sum_for_mean, pool()),
    "first for mean": ("_mean", first_for_mean, pool()),
    "bias forgotten in a pool": ("_axes", forgetting("bias"), pool()),
    "full-width norm forgotten in a pool": ("_axes", forgetting("norm"), pool(FULL_WIDTH)),
    "bias forgotten in an expansion": ("_axes", forgetting("bias"), expanded()),
    "full-width norm forgotten in an expansion": ("_axes", forgetting("norm"), expanded(FULL_WIDTH)),
    "bias forgotten in a pairing": ("_axes", forgetting("bias"), paired()),
    "norm forgotten in a pairing": ("_axes", forgetting("norm"), paired(NORMED)),
    "full-width norm forgotten in a pairing": ("_axes", forgetting("norm"), paired(FULL_WIDTH)),
    "queries forgotten in a pairing": ("_axes", forgetting("q_proj"), paired()),
    "keys as if N heads": (
        "convert_rope_pairing",
        keys_in_as_many_heads_as_queries,
        paired(replace(BIASED, head_dim=12)),
    ),
    "keys as if N / K heads": ("convert_rope_pairing", keys_in_groups, paired()),
    "whole head paired": ("rotary_order", whole_head_paired, paired(PARTIAL)),
    "paired the other way": ("rotary_order", paired_the_other_way, paired()),
    "bias on every rank": ("slice_heads", bias_on_every_rank, ranks()),
    "bias on no rank": ("slice_heads", bias_on_no_rank, ranks()),
    "ranks in reverse": ("slice_heads", ranks_in_reverse, ranks()),
    "first KV heads for all ranks": ("slice_heads", first_kv_heads_for_all, ranks()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_caught_where_correct_code_passes(monkeypatch, mutant):
    place, wrong, check = MUTANTS[mutant]
    check()
    monkeypatch.setattr(heads, place, wrong)
    with pytest.raises((AssertionError, ValueError)):
        check()


def test_equal_counts_hide_the_bug_of_llama_cpp(monkeypatch):
    """Why the head counts above are not 64 and 8 alone: there N / K = K, and the check is blind."""
    monkeypatch.setattr(heads, "convert_rope_pairing", keys_in_groups)
    checks.check_pairing_computes_the_same(checks.layer_config(64, 8, rope=RopeConfig()))

"""MHA, GQA and MQA side by side: parameters, cache, decoding speed, perplexity."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gqa_spec import AttentionConfig
from gqa_spec.sizes import kv_cache_bytes, parameter_count
from gqa_studies.timing import MOST, paired, seconds
from gqa_torch import GroupedQueryAttention

KV_HEADS, CACHED = (8, 4, 2, 1), 4096


@dataclass(frozen=True)
class Variant:
    """One attention layer. times_as_fast: against K = N, the median over pairs of single steps run in turn, with its
    quartiles."""

    variant: str
    num_kv_heads: int
    parameters: int
    cache_bytes_2_byte: int
    cache_bytes_4_byte: int
    decode_milliseconds: float
    times_as_fast: float
    times_as_fast_low: float
    times_as_fast_high: float
    perplexity: float | None
    perplexity_deviation: float | None


def compare_attention_variants(
    d_model: int = 512,
    num_heads: int = 8,
    kv_heads: Sequence[int] = KV_HEADS,
    *,
    cached: int = CACHED,
    budget: float = 10.0,
    perplexities: Mapping[int, tuple[float, float | None]] | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[Variant]:
    """Each number of KV heads in a layer of width d_model. Caches are of `cached` tokens; decoding appends one token to
    one in float32, timed for `budget` seconds. perplexities: K -> mean and deviation, of another study's models. `done`
    is called after each variant."""
    found = []
    for K in kv_heads:
        layer = AttentionConfig(embed_dim=d_model, num_heads=num_heads, num_kv_heads=K, causal=True)
        mha = replace(layer, num_kv_heads=num_heads)
        pairs = paired(Decoding(layer, cached).clock, Decoding(mha, cached).clock, budget)
        perplexity, deviation = (perplexities or {}).get(K, (None, None))
        two, four = (kv_cache_bytes(layer, cached, bytes_per_element=size) for size in (2, 4))
        found.append(
            Variant(
                name(num_heads, K),
                K,
                parameter_count(layer),
                two,
                four,
                1e3 * statistics.median(pairs.ours),
                pairs.ratio(),
                pairs.ratio(0.25),
                pairs.ratio(0.75),
                perplexity,
                deviation,
            )
        )
        done()
    return found


def name(num_heads: int, num_kv_heads: int) -> str:
    return {num_heads: "MHA", 1: "MQA"}.get(num_kv_heads, f"GQA-{num_kv_heads}")


class Decoding:
    """A layer with a cache of `cached` tokens, which grows by one token with each call of its clock."""

    def __init__(self, config: AttentionConfig, cached: int) -> None:
        torch.manual_seed(0)
        self.layer = GroupedQueryAttention.from_config(config).eval()
        empty = self.layer.init_cache(1, cached + 2 * MOST)
        _, self.cache = self.layer.extend(torch.randn(1, cached, config.embed_dim), empty)
        self.token = torch.randn(1, 1, config.embed_dim)

    def clock(self) -> float:
        return seconds(self._step)

    def _step(self) -> None:
        _, self.cache = self.layer.extend(self.token, self.cache)

"""Sizes against numbers that others published."""

import pytest

from gqa_spec import AttentionConfig
from gqa_spec.sizes import attention_flops, kv_cache_bytes, parameter_count

LLAMA_2_70B = AttentionConfig(embed_dim=8192, num_heads=64, num_kv_heads=8)
LLAMA_2_7B = AttentionConfig(embed_dim=4096, num_heads=32)


def test_parameters_of_llama_2_70b():
    """q and o are 8192 x 8192, k and v 8192 x 1024."""
    assert parameter_count(LLAMA_2_70B) == 2 * 8192 * 8192 + 2 * 8192 * 1024


def test_the_cache_of_llama_2():
    """7B in 16 bit: 0.5 MiB per token over 32 layers; 70B: 320 KiB over 80 layers, thanks to 8 of 64 heads."""
    assert 32 * kv_cache_bytes(LLAMA_2_7B, 1) == 512 * 1024
    assert 80 * kv_cache_bytes(LLAMA_2_70B, 1) == 320 * 1024


def test_a_rolling_cache_stops_at_the_window():
    mistral = AttentionConfig(embed_dim=4096, num_heads=32, num_kv_heads=8, causal=True, window=4096)
    assert kv_cache_bytes(mistral, 32768, rolling=True) == kv_cache_bytes(mistral, 4096)
    with pytest.raises(ValueError, match="rolling: expected a window"):
        kv_cache_bytes(LLAMA_2_7B, 10, rolling=True)


def test_fewer_kv_heads_save_memory_but_hardly_arithmetic():
    full = AttentionConfig(embed_dim=512, num_heads=8)
    single = AttentionConfig(embed_dim=512, num_heads=8, num_kv_heads=1)
    assert kv_cache_bytes(full, 100) == 8 * kv_cache_bytes(single, 100)
    saved = attention_flops(full, 1000, 1000) - attention_flops(single, 1000, 1000)
    assert saved == 2 * 1000 * 512 * 2 * 7 * 64

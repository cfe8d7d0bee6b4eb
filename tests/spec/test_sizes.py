"""Sizes against numbers that others published."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gqa_numpy import Transformer
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.sizes import (
    attention_flops,
    kv_cache_bytes,
    model_kv_cache_bytes,
    parameter_count,
)
from gqa_weights.families import FAMILIES

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


# Each model's settings as its config.json states them (V, D, F, layers, N, K), and the number of parameters that its
# safetensors files hold, as its page on the Hugging Face hub states it.
PUBLISHED: dict[str, tuple[str, tuple[int, int, int, int, int, int], dict[str, Any], int]] = {
    "Llama-2-7B": ("llama", (32000, 4096, 11008, 32, 32, 32), {}, 6_738_415_616),
    "Llama-2-70B": ("llama", (32000, 8192, 28672, 80, 64, 8), {}, 68_976_648_192),
    "Llama-3.1-8B": ("llama", (128256, 4096, 14336, 32, 32, 8), {}, 8_030_261_248),
    "Mistral-7B": ("mistral", (32000, 4096, 14336, 32, 32, 8), {}, 7_241_732_096),
    "Mistral-Nemo": ("mistral", (131072, 5120, 14336, 40, 32, 8), {"head_dim": 128}, 12_247_782_400),
    "Qwen2.5-0.5B": ("qwen2", (151936, 896, 4864, 24, 14, 2), {"tie_word_embeddings": True}, 494_032_768),
    "Qwen2.5-7B": ("qwen2", (152064, 3584, 18944, 28, 28, 4), {}, 7_615_616_512),
    "Qwen3-0.6B": ("qwen3", (151936, 1024, 3072, 28, 16, 8), {"tie_word_embeddings": True}, 596_049_920),
    "Qwen3-8B": ("qwen3", (151936, 4096, 12288, 36, 32, 8), {}, 8_190_735_360),
    "Gemma-2B": ("gemma", (256000, 2048, 16384, 18, 8, 1), {}, 2_506_172_416),
    "Gemma-7B": ("gemma", (256000, 3072, 24576, 28, 16, 16), {}, 8_537_680_896),
    "Gemma-2-2B": ("gemma2", (256000, 2304, 9216, 26, 8, 4), {}, 2_614_341_888),
    "Gemma-2-9B": ("gemma2", (256000, 3584, 14336, 42, 16, 8), {}, 9_241_705_984),
    "Gemma-2-27B": ("gemma2", (256000, 4608, 36864, 46, 32, 16), {"head_dim": 128}, 27_227_128_320),
    "Gemma-3-1B": ("gemma3_text", (262144, 1152, 6912, 26, 4, 1), {}, 999_885_952),
    "Phi-3-mini": ("phi3", (32064, 3072, 8192, 32, 32, 32), {}, 3_821_079_552),
    "OLMo-2-1B": ("olmo2", (100352, 2048, 8192, 16, 16, 16), {}, 1_484_916_736),
    "OLMo-2-7B": ("olmo2", (100352, 4096, 11008, 32, 32, 32), {}, 7_298_617_344),
    "StarCoder2-3B": ("starcoder2", (49152, 3072, 12288, 30, 24, 2), {}, 3_030_371_328),
    "SmolLM3-3B": ("smollm3", (128256, 2048, 11008, 36, 16, 4), {}, 3_075_098_624),
    "SmolLM2-135M": ("llama", (49152, 576, 1536, 30, 9, 3), {"tie_word_embeddings": True}, 134_515_008),
}
KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def published(name: str) -> ModelConfig:
    family, sizes, other, _ = PUBLISHED[name]
    return FAMILIES[family].read_config(dict(zip(KEYS, sizes, strict=True)) | other, {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name: str) -> None:
    config = published(name)
    assert config.param_count == PUBLISHED[name][3]


def test_caches_of_published_models() -> None:
    """Llama 2 70B: 320 KiB per token in 16 bit. Mistral 7B: 128 KiB, and never more than 4096 of them, 512 MiB."""
    assert model_kv_cache_bytes(published("Llama-2-70B"), 1) == 320 * 1024
    assert model_kv_cache_bytes(published("Llama-2-7B"), 2048, batch_size=3, bytes_per_element=4) == 3 * 2 * 1024**3
    assert model_kv_cache_bytes(published("Mistral-7B"), 32768) == 4 * 1024**3
    assert model_kv_cache_bytes(published("Mistral-7B"), 32768, rolling=True) == 512 * 1024**2


def test_a_cache_rolls_only_where_there_is_a_window() -> None:
    """Gemma 3 1B: 22 of 26 layers see 512 positions; each holds 1 KV head of 256, 1 KiB for each position."""
    gemma = published("Gemma-3-1B")
    gemma = replace(gemma, attention=tuple(replace(x, window=x.window and 512) for x in gemma.attention))
    assert model_kv_cache_bytes(gemma, 32768, rolling=True) == (4 * 32768 + 22 * 512) * 1024
    assert model_kv_cache_bytes(gemma, 100, rolling=True) == 26 * 100 * 1024
    assert model_kv_cache_bytes(gemma.attention[5:6], 32768, rolling=True) == 32768 * 1024


def test_sizes_of_real_objects() -> None:
    """A model's arrays and its caches' arrays hold what the arithmetic says."""
    layer = AttentionConfig(
        embed_dim=22, num_heads=6, num_kv_heads=2, head_dim=5, v_head_dim=3, causal=True, qkv_bias=True, qk_norm="rms"
    )
    config = ModelConfig(
        attention=(layer, replace(layer, window=7), replace(layer, window=99)),
        feed_forward_size=17,
        vocab_size=19,
        norm="layer",
        norm_bias=True,
        norm_placement="both",
        feed_forward_bias=True,
    )
    model = Transformer(config, dtype=np.float32)
    assert config.param_count == sum(array.size for array in model.export_weights().values())
    caches = model.init_cache(3, 41)
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert held == model_kv_cache_bytes(config, 41, batch_size=3, bytes_per_element=4, rolling=True)

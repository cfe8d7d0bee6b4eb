"""Facts about published models, as their config files state them: what decides the size of a KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from gqa_spec import AttentionConfig


@dataclass(frozen=True)
class PublishedModel:
    """L layers of width D with N query heads, K KV heads and head size H.

    window, full_every: every `full_every`-th layer attends to all tokens, the others to the last `window`; 0 means that
    none does.
    """

    layers: int
    D: int
    N: int
    K: int
    H: int
    max_length: int
    window: int | None = None
    full_every: int = 1

    @property
    def attention(self) -> tuple[AttentionConfig, ...]:
        return tuple(self._layer(i) for i in range(self.layers))

    def _layer(self, i: int) -> AttentionConfig:
        full = self.full_every > 0 and (i + 1) % self.full_every == 0
        return AttentionConfig(
            embed_dim=self.D,
            num_heads=self.N,
            num_kv_heads=self.K,
            head_dim=self.H,
            causal=True,
            window=None if full else self.window,
        )


PUBLISHED = {
    "Llama-2-7B": PublishedModel(32, 4096, 32, 32, 128, 4096),
    "Llama-2-70B": PublishedModel(80, 8192, 64, 8, 128, 4096),
    "Llama-3.1-8B": PublishedModel(32, 4096, 32, 8, 128, 131072),
    "Llama-3.1-70B": PublishedModel(80, 8192, 64, 8, 128, 131072),
    "Mistral-7B": PublishedModel(32, 4096, 32, 8, 128, 32768, window=4096, full_every=0),
    "Gemma-2B": PublishedModel(18, 2048, 8, 1, 256, 8192),
    "Gemma-7B": PublishedModel(28, 3072, 16, 16, 256, 8192),
    "Gemma-2-9B": PublishedModel(42, 3584, 16, 8, 256, 8192, window=4096, full_every=2),
    "Gemma-2-27B": PublishedModel(46, 4608, 32, 16, 128, 8192, window=4096, full_every=2),
    "Gemma-3-4B": PublishedModel(34, 2560, 8, 4, 256, 131072, window=1024, full_every=6),
    "Gemma-3-27B": PublishedModel(62, 5376, 32, 16, 128, 131072, window=1024, full_every=6),
    "Qwen3-0.6B": PublishedModel(28, 1024, 16, 8, 128, 40960),
    "Qwen3-8B": PublishedModel(36, 4096, 32, 8, 128, 40960),
    "Qwen3-32B": PublishedModel(64, 5120, 64, 8, 128, 40960),
    "gpt-oss-20b": PublishedModel(24, 2880, 64, 8, 64, 131072, window=128, full_every=2),
    "gpt-oss-120b": PublishedModel(36, 2880, 64, 8, 64, 131072, window=128, full_every=2),
    "SmolLM2-135M": PublishedModel(30, 576, 9, 3, 64, 8192),
}

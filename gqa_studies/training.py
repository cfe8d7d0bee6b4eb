"""Small decoder models, trained on real prose: one recipe, in which nothing but num_kv_heads differs between runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.nn import functional as F

from gqa_spec import AttentionConfig, ModelConfig, RopeConfig
from gqa_spec.model_config import model_weight_shapes
from gqa_studies import text
from gqa_torch import Transformer

Array = np.ndarray


@dataclass(frozen=True)
class Recipe:
    """A LLaMA-like model (RMS norm, RoPE, gated SiLU, tied embeddings) over bytes, and how it is trained: AdamW, the
    rate up to `rate` in a twentieth of the steps, then down to a tenth of it along a cosine. test_bytes: how much of
    the book held out is read."""

    width: int = 128
    heads: int = 8
    layers: int = 4
    feed_forward: int = 384
    context: int = 256
    batch: int = 8
    steps: int = 500
    rate: float = 3e-3
    test_bytes: int = 2**16

    def config(self, num_kv_heads: int) -> ModelConfig:
        layer = AttentionConfig(
            embed_dim=self.width, num_heads=self.heads, num_kv_heads=num_kv_heads, causal=True, rope=RopeConfig()
        )
        return ModelConfig(
            attention=(layer,) * self.layers,
            feed_forward_size=self.feed_forward,
            vocab_size=text.VOCABULARY,
            tied=True,
            max_length=self.context,
        )

    def rates(self) -> list[float]:
        return [self.rate * self._share(step) for step in range(self.steps)]

    def _share(self, step: int) -> float:
        warm = max(self.steps // 20, 1)
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(self.steps - warm, 1))

    def settings(self) -> dict[str, Any]:
        return asdict(self)


SHORT = Recipe(steps=60)
QUICK = Recipe(width=32, layers=2, feed_forward=64, context=64, batch=4, steps=12, test_bytes=2**10)


class Training:
    """A model and its optimizer."""

    def __init__(self, model: Transformer, weight_decay: float = 0.1) -> None:
        self.model = model
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)

    def step(self, batch: Array, rate: float) -> float:
        """One update on a batch (B, T + 1); the loss before it, in nats per token."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = losses(self.model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def losses(model: Transformer, batch: Array) -> torch.Tensor:
    """(B, T): nats that each token of the batch (B, T + 1), but the first of a row, costs the model."""
    tokens = torch.from_numpy(batch.astype(np.int64))
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


@torch.no_grad()
def nats_per_token(model: Transformer, passages: Array, rows: int = 32) -> float:
    """The mean over all tokens of passages (P, T + 1), `rows` of them at a time. exp of it is the perplexity."""
    model.eval()
    parts = np.array_split(passages, math.ceil(len(passages) / rows))
    return sum(losses(model, part).double().sum().item() for part in parts) / passages[:, 1:].size


def initial_weights(config: ModelConfig, seed: int) -> dict[str, Array]:
    """Each weight from a generator of its own, named after it: models that differ in num_kv_heads start with the same
    numbers everywhere else, and with the same first KV heads. What writes into the residual stream starts smaller."""
    drawn = {}
    for name, shape in model_weight_shapes(config).items():
        if len(shape) == 1:
            drawn[name] = np.ones(shape, np.float32)
            continue
        normal = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        writes = name.endswith(("o_proj.weight", "down.weight"))
        scale = (
            0.02 if name == "embed.weight" else shape[1] ** -0.5 / (math.sqrt(2 * config.num_layers) if writes else 1)
        )
        drawn[name] = normal * np.float32(scale)
    return drawn


def built(config: ModelConfig, weights: Mapping[str, Array]) -> Transformer:
    return Transformer(config).load_weights(weights)


def trained(model: Transformer, batches: Iterable[Array], rates: Iterable[float], done: Any) -> list[float]:
    """The loss of each step; `done` is called after each."""
    training, found = Training(model), []
    for batch, rate in zip(batches, rates, strict=True):
        found.append(training.step(batch, rate))
        done()
    return found

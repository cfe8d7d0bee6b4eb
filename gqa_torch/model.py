"""A whole model from a `ModelConfig`: embedding, blocks, norm, and logits or the last hidden state. SPEC 18."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from gqa_spec import ModelConfig, checks
from gqa_spec.generation import Callback, Request
from gqa_spec.model_config import model_symbolic_shapes, model_weight_shapes
from gqa_torch import cache as cache_
from gqa_torch import masks
from gqa_torch.block import Block, Norm
from gqa_torch.cache import Append, KVCache
from gqa_torch.layer import array, tensor
from gqa_torch.precision import autocast_dtype, widened
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import read_model

Caches = tuple[KVCache, ...]


class Transformer(nn.Module):
    """A stack of blocks between an embedding and logits, or the last position's hidden state.

    device and dtype are those of the parameters; dtype is that of vectors and results too, except under autocast. The
    keys of `state_dict` are the canonical names. A new model is in training mode, one from a checkpoint in eval mode.
    """

    def __init__(
        self, config: ModelConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        checks.instance("config", config, ModelConfig)
        self.config = config
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        if config.vocab_size is not None:
            self.embed: nn.Embedding | nn.Linear = nn.Embedding(config.vocab_size, config.hidden_size, **options)
        else:
            self.embed = nn.Linear(config.input_dim or 0, config.hidden_size, **options)
        self.blocks: Any = nn.ModuleList(Block(config, i, **options) for i in range(config.num_layers))
        self.norm = Norm(config, **options)
        own_head = config.output == "logits" and not config.tied
        self.head = nn.Linear(config.hidden_size, config.output_size, bias=False, **options) if own_head else None
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | Checkpoint,
        dtype: torch.dtype | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Self:
        """A model in eval mode from a Hugging Face folder or a GGUF file (or what
        `open_checkpoint` made of one); dtype is the widest of the checkpoint's when None, which rounds no weight.

        Raises CheckpointError for a file that cannot be read, ValueError for an unknown family or setting.
        """
        read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
        dtype = getattr(torch, read.dtype) if dtype is None else dtype
        model = cls(read.config, device="meta")
        for name in model_weight_shapes(read.config):
            owner, _, key = name.rpartition(".")
            weight = tensor(read.weights[name]).to(device=device, dtype=dtype)
            setattr(model.get_submodule(owner), key, nn.Parameter(weight))
        return model.eval()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """SPEC 17: matrices uniform in +-fan_in ** -0.5, biases 0, norms at the identity."""
        for name, parameter in self.named_parameters():
            if ".attention." in name:
                continue  # drawn by the layer itself
            if name.endswith("norm.weight"):
                parameter.fill_(0.0 if self.config.norm == "rms_plus_one" else 1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound)

    def forward(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T I"],
        *,
        lengths: Integer[Array, "B"] | None = None,
        rope_length: int | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Logits (B, T, V), or with output="last_hidden" the last position's normed state (B, D).

        tokens: integers, or vectors of the model's dtype where the config has an input_dim. lengths: how many of each
        row are real (right-padded), T by default; the others are not attended to, and what is returned for them means
        nothing. rope_length as for `GroupedQueryAttention`. With hidden_states a pair: the result, and the states
        (B, T, D) after the embedding and after each block. Raises ValueError for shapes and values, TypeError for
        dtypes.
        """
        count = self._count(tokens, lengths)
        mask = None if lengths is None else masks.padding(count.to(tokens.device), tokens.shape[1])
        states = [self._embed(tokens)]
        for block in self.blocks:
            states.append(block(states[-1], mask, rope_length))
        result = self._result(states[-1], count, last=False)
        return (result, tuple(states)) if hidden_states else result

    def init_cache(self, batch_size: int, max_length: int, *, dtype: torch.dtype | None = None) -> Caches:
        """An empty cache for `extend`, one for each layer; rolling where a layer's window is shorter than max_length.

        dtype is the model's when None. Raises ValueError for a model that is not causal.
        """
        return tuple(
            block.attention.init_cache(batch_size, max_length, rolling=rolls, dtype=dtype)
            for block, rolls in zip(self.blocks, self.config.rolling(max_length), strict=True)
        )

    @torch.no_grad()
    def extend(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T I"],
        cache: Caches,
        *,
        lengths: Integer[Array, "B"] | None = None,
        last: bool = False,
    ) -> tuple[Array, Caches]:
        """Append tokens to the cache and return what one whole pass would for them, with the longer cache.

        lengths: how many of each row are real, as in `GroupedQueryAttention.extend`. last: logits (B, V) of each row's
        last real token alone, 0 where a row has none. Raises ValueError where a row has no room, before anything is
        written. No gradients.
        """
        count = self._count(tokens, lengths)
        self._check_cache(tokens, cache, count)
        x, longer, step = self._embed(tokens), [], None
        for block, held in zip(self.blocks, cache, strict=True):
            if step is None or not step.serves(held):
                step = Append(tokens.shape[1], held.length, count, lengths is not None, x.device)
            x, extended = block.append(x, held, step)
            longer.append(extended)
        return self._result(x, count, last), tuple(longer)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Collection[int] = (),
        uniforms: Any = None,
        callback: Callback | None = None,
    ) -> list[list[int]]:
        """New tokens for each prompt, up to max_new_tokens or the first stop token, which is included.

        prompts: lists of token ids, of any lengths. temperature 0 takes the likeliest token; else temperature, top_k
        and top_p narrow the choice in this order, and uniforms (B, max_new_tokens) in [0, 1), drawn where None, make
        it: the same in all backends (SPEC 19). callback: told of each step's tokens, None for a row that has ended.
        Raises ValueError and TypeError for bad prompts and settings.
        """
        request = Request.of(self.config, prompts, max_new_tokens, temperature, top_k, top_p, stop_tokens, uniforms)
        cache = self.init_cache(request.batch_size, request.cache_length)
        device = self.norm.weight.device

        def step(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            nonlocal cache
            given = None if (lengths == tokens.shape[1]).all() else torch.from_numpy(lengths)
            logits, cache = self.extend(torch.from_numpy(tokens).to(device), cache, lengths=given, last=True)
            return widened(logits).cpu().numpy()

        return request.run(step, callback)

    @torch.no_grad()
    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy canonical weights (arrays or tensors) into place, all or none.

        Raises ValueError that names every missing, unexpected and misshapen one, TypeError for a narrowing cast.
        """
        arrays = {name: x if isinstance(x, Array) else np.asarray(x) for name, x in mapping.items()}
        dtype = checks.dtype_name(self.norm.weight)
        checks.weights(arrays, model_weight_shapes(self.config), model_symbolic_shapes(self.config), dtype)
        for name, x in arrays.items():
            self.get_parameter(name).copy_(tensor(x))
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Canonical names -> NumPy arrays, copied."""
        return {name: array(self.get_parameter(name)) for name in model_weight_shapes(self.config)}

    def _count(self, tokens: Array, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of each row's tokens are real, once everything that is known has been checked."""
        weight = self.norm.weight
        dtype = autocast_dtype(weight.dtype, weight.device)
        if isinstance(tokens, Array) and tokens.dtype == weight.dtype:
            dtype = weight.dtype  # autocast takes it as it is
        checks.model_input(self.config, str(dtype).removeprefix("torch."), tokens, Array)
        B, T = tokens.shape[:2]
        if self.config.vocab_size is not None and B and not torch.compiler.is_compiling():
            lowest, highest = torch.stack(tokens.aminmax()).tolist()
            checks.token_ids(lowest, highest, self.config.vocab_size)
        if lengths is None:
            return torch.full((B,), T, device="cpu")
        checks.cache_lengths(lengths, Array, B)
        checks.cache_lengths_in_chunk(cache_.known(lengths) or (), T)
        return lengths.to("cpu", torch.int64).clamp(0, T)

    def _check_cache(self, tokens: Array, cache: Caches, count: Integer[Array, "B"]) -> None:
        """Every layer's before any is written; those that are alike once."""
        checks.model_cache(cache, self.config.num_layers, KVCache)
        layers = zip(self.config.attention, cache, strict=True)
        for layer, keys, values, rolling in {(x, c.keys.shape, c.values.shape, c.rolling) for x, c in layers}:
            checks.extend(layer, (*tokens.shape[:2], self.config.hidden_size), keys, values, rolling)
        counts = cache_.known(count) or ()
        for held in cache:
            checks.cache_not_consumed(held.spent)
            if not held.rolling:
                checks.cache_room(held.capacity, cache_.known(held.length) or (), counts)

    def _embed(self, tokens: Array) -> Float[Array, "B T D"]:
        x = self.embed(tokens)
        if self.config.embedding_scale != 1:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return self.dropout(x)

    def _result(self, x: Float[Array, "B T D"], count: Integer[Array, "B"], last: bool) -> Array:
        """From the last block's states to logits, or to the last position's hidden state."""
        if last or self.config.output == "last_hidden":
            x = _last(x, count)
        x = self.norm(x)
        if self.config.output == "last_hidden":
            return _real(x, count)
        logits = self.head(x) if self.head is not None else functional.linear(x, self.embed.weight)
        if self.config.logit_softcap is not None:
            wide = widened(logits) / self.config.logit_softcap
            logits = (wide.tanh() * self.config.logit_softcap).to(logits.dtype)
        return _real(logits, count) if last else logits


def _last(x: Float[Array, "B T D"], count: Integer[Array, "B"]) -> Float[Array, "B D"]:
    return x[torch.arange(x.shape[0], device=x.device), (count.clamp(min=1) - 1).to(x.device)]


def _real(x: Float[Array, "B W"], count: Integer[Array, "B"]) -> Float[Array, "B W"]:
    """0 for the rows that have no token."""
    return torch.where((count > 0).to(x.device)[:, None], x, 0)

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

from gqa_spec import ModelConfig, checks
from gqa_spec.generation import Callback, Request
from gqa_spec.model_config import model_symbolic_shapes, model_weight_shapes
from gqa_torch import masks, parameters
from gqa_torch.arrays import tensor
from gqa_torch.block import Block, Norm, scaled
from gqa_torch.cache import KVCache, ModelCache, consume
from gqa_torch.decoding import DecodeStep, Extension, check_free_slots, known, real_tokens
from gqa_torch.parts import linear
from gqa_torch.precision import autocast_dtype, widened
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import read_model

Prompts = Sequence[Sequence[int]] | Sequence[Array] | Array | np.ndarray


class Transformer(nn.Module):
    """A stack of blocks between an embedding and logits, or the last position's hidden state.

    The keys of `state_dict` are the canonical names of the weights. A new model is in training mode, one from a
    checkpoint in eval mode.

    Args:
        config: The settings.
        device: Where the parameters are.
        dtype: Of the parameters, and of vectors and results except under autocast; PyTorch's default dtype by default.
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
        head = (config.hidden_size, config.output_size, config.head_bias)
        self.head = nn.Linear(*head, **options) if own_head else None
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
        """Make a model in eval mode from a checkpoint.

        Args:
            path: A Hugging Face folder or a GGUF file, or what `open_checkpoint` returned for one.
            dtype: Of the parameters; by default the widest of the checkpoint, which rounds no weight.
            device: Where the parameters are.

        Raises:
            CheckpointError: For a file that cannot be read.
            ValueError: For an unknown family or setting.
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
        """Draw the canonical weights of the whole model again (SPEC 17). Other parameters stay as they are."""
        for block in self.blocks:
            block.attention.reset_parameters()
        for name in model_weight_shapes(self.config):
            if ".attention." in name:
                continue
            if name.rpartition(".")[0].endswith("norm"):
                norm: Any = self.get_submodule(name.rpartition(".")[0])
                norm.reset_parameters()
            elif parameters.has(self, name):
                parameters.draw_projection(self, name)

    def forward(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T _"],
        *,
        mask: Array | None = None,
        positions: Integer[Array, "..."] | None = None,
        segments: Integer[Array, "B T"] | None = None,
        lengths: Integer[Array, "B"] | None = None,
        rope_length: int | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Run the model on whole sequences.

        Args:
            tokens: Integers (B, T), or their embeddings, vectors (B, T, D) of the model's dtype; where the config
                has an input_dim, vectors (B, T, I).
            mask: Which tokens a token may attend to, (T, T) or broadcastable to (B, N, T, T), as for
                `GroupedQueryAttention`, in all layers. Left padding: `real[:, None, None]` of a mask (B, T).
            positions: By which RoPE rotates, (T,) or (B, T); 0 to T - 1 by default.
            segments: The number of each token's document, (B, T): a token attends only to its own document.
            lengths: How many of each row are real (right-padded), (B,); T by default. The others are not attended to,
                and what is returned for them means nothing.
            rope_length: As for `GroupedQueryAttention`.
            hidden_states: Whether to return the states too.

        Returns:
            Logits (B, T, V), or with output="last_hidden" the last position's normed state (B, D). With hidden_states a
            pair: this, and the states (B, T, D) after the embedding and after each block.

        Raises:
            ValueError: For a wrong shape or value (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        count = self._count(tokens, lengths)
        checks.model_call(self.config, tokens, mask, positions, segments, Array)
        visible = [] if mask is None else [mask]
        visible += [] if segments is None else [masks.segments(segments, segments)]
        visible += [] if lengths is None else [masks.padding(count.to(tokens.device), tokens.shape[1])]
        mask = masks.combine(*visible) if visible else None
        states = [self.dropout(self._embed(tokens))]
        for block, layer in zip(self.blocks, self.config.attention, strict=True):
            rotation = positions if layer.uses_positions else None
            states.append(block(states[-1], mask, positions=rotation, rope_length=rope_length))
        result = self._result(states[-1], count, last=False)
        return (result, tuple(states)) if hidden_states else result

    def init_cache(
        self, batch_size: int, max_length: int, *, rolling: bool = True, dtype: torch.dtype | None = None
    ) -> ModelCache:
        """Make an empty cache for `extend`: one for each layer, rolling where its window is shorter than max_length.

        Args:
            batch_size: B, the number of rows.
            max_length: How many tokens each row can have.
            rolling: False keeps every token in every layer, as `truncate` needs.
            dtype: Of keys and values; the model's by default.

        Raises:
            ValueError: For a model that is not causal.
            TypeError: For a wrong type or dtype.
        """
        return ModelCache(
            block.attention.init_cache(batch_size, max_length, rolling=rolls and rolling, dtype=dtype)
            for block, rolls in zip(self.blocks, self.config.rolling(max_length), strict=True)
        )

    @torch.no_grad()
    def extend(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T _"],
        cache: tuple[KVCache, ...],
        *,
        lengths: Integer[Array, "B"] | None = None,
        last: bool = False,
    ) -> tuple[Array, ModelCache]:
        """Append tokens to a cache and return what one whole pass would for them, but without gradients
        and dropout.

        Args:
            tokens: As in a call of the model.
            cache: The cache so far. Its storage is written, and it is consumed: it cannot be extended again.
            lengths: How many of each row are real, (B,), as for `GroupedQueryAttention.extend`.
            last: Whether to return the logits of each row's last real token alone.

        Returns:
            As from a call of the model, or with last logits (B, V), 0 for a row without a real token; and the new
            cache, on the storage of the old one.

        Raises:
            ValueError: For a wrong shape or value, a consumed cache, or a full row; nothing is written then.
            TypeError: For a wrong type or dtype.
        """
        count = self._count(tokens, lengths)
        self._check_cache(tokens, cache, count)
        consume(*cache)
        x, new_caches, step = self._embed(tokens), [], None
        for block, held in zip(self.blocks, cache, strict=True):
            if step is None or not step.starts_at(held):
                step = DecodeStep(tokens.shape[1], held.length, count, lengths is not None, x.device)
            extension = Extension(held, step)
            x = block(x, extension=extension)
            new_caches.append(extension.extended())
        return self._result(x, count, last), ModelCache(new_caches)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Collection[int] = (),
        uniforms: Any = None,
        seed: int | None = None,
        cache: tuple[KVCache, ...] | None = None,
        callback: Callback | None = None,
    ) -> Any:
        """Continue each prompt as if it were alone (SPEC 19).

        Args:
            prompts: Lists or arrays of token ids, of any lengths, or one array (B, T).
            max_new_tokens: How many tokens each row gets at most.
            temperature: 0 takes the likeliest token; above 0 one is sampled from softmax(logits / temperature).
            top_k: Sample from the k likeliest tokens only.
            top_p: Then from the fewest likeliest tokens that have this probability together.
            stop_tokens: A row ends with the first of these, which is returned too.
            uniforms: Numbers in [0, 1) that choose the tokens, (B, max_new_tokens), the same in all backends; drawn by
                default.
            seed: By which the uniforms are drawn, the same in all backends; another one in each call by default.
            cache: What the prompts continue: an earlier turn, a shared prefix. It is consumed. By default, an empty one
                with as many slots as are needed.
            callback: Called with the tokens of each step, None for a row that has ended.

        Returns:
            The new tokens of each row; with a cache a pair: these, and the new cache, which holds prompts and new
            tokens.

        Raises:
            ValueError: For bad prompts or settings.
            TypeError: For a wrong type.
        """
        if cache is not None:
            checks.model_cache(cache, self.config.num_layers, KVCache)
        request = Request.of(
            self.config,
            prompts,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            stop_tokens,
            uniforms,
            seed=seed,
            held=None if cache is None else cache[0].length.tolist(),
        )
        for layer in cache or ():
            check_free_slots(layer, torch.tensor(request.most_tokens))
        extended = self.init_cache(request.batch_size, request.cache_length) if cache is None else cache
        device = self._floating().device

        def step(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            nonlocal extended
            given = None if (lengths == tokens.shape[1]).all() else torch.from_numpy(lengths)
            logits, extended = self.extend(torch.from_numpy(tokens).to(device), extended, lengths=given, last=True)
            return widened(logits).cpu().numpy()

        new = request.run(step, callback, complete=cache is not None)
        return new if cache is None else (new, extended)

    @torch.no_grad()
    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy weights into place, all or none.

        Args:
            mapping: Canonical names to arrays or tensors.

        Returns:
            The model itself.

        Raises:
            ValueError: Names every missing, unexpected and misshapen weight.
            TypeError: For a cast that could lose bits, and where an adapter or a quantized layer is in the place of a
                parameter.
        """
        parameters.load(self, mapping, model_weight_shapes(self.config), model_symbolic_shapes(self.config))
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays.
        """
        return parameters.export(self, model_weight_shapes(self.config))

    def _count(self, tokens: Array, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of each row's tokens are real, after every check that needs no traced value."""
        weight = self._floating()
        dtype = autocast_dtype(weight.dtype, weight.device)
        if isinstance(tokens, Array) and tokens.dtype == weight.dtype:
            dtype = weight.dtype  # the embedding takes either
        checks.model_input(self.config, str(dtype).removeprefix("torch."), tokens, Array)
        if self.config.vocab_size is not None and tokens.ndim == 2 and tokens.shape[0]:
            lowest, highest = known(torch.stack(tokens.aminmax())) or (0, 0)
            checks.token_ids(lowest, highest, self.config.vocab_size)
        return real_tokens(tokens, lengths)

    def _floating(self) -> nn.Parameter:
        """The parameter that has the model's dtype and device; a norm's where all else is quantized."""
        weight = parameters.floating((self.embed, self.norm))
        assert weight is not None
        return weight

    def _check_cache(self, tokens: Array, cache: tuple[KVCache, ...], count: Integer[Array, "B"]) -> None:
        """Check the cache of every layer before any is written; equal ones once."""
        checks.model_cache(cache, self.config.num_layers, KVCache)
        x = (*tokens.shape[:2], self.config.hidden_size)
        local = [block.attention.local_kv_heads() for block in self.blocks]
        layers = zip(self.config.attention, cache, local, strict=True)
        alike = {(layer, held.keys.shape, held.values.shape, held.rolling, heads) for layer, held, heads in layers}
        for layer, keys, values, rolling, heads in alike:
            checks.extend(layer, x, keys, values, rolling, num_kv_heads=heads)
        for held in cache:
            checks.cache_not_consumed(held.consumed)
            check_free_slots(held, count)

    def _embed(self, tokens: Array) -> Float[Array, "B T D"]:
        if self.config.vocab_size is not None and tokens.ndim == 3:
            return tokens
        x = self.embed(tokens)
        if self.config.embedding_scale != 1:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return x

    def _result(self, x: Float[Array, "B T D"], count: Integer[Array, "B"], last: bool) -> Array:
        """From the last block's states to logits, or to the last position's hidden state."""
        if last or self.config.output == "last_hidden":
            x = _last(x, count)
        x = self.norm(x)
        if self.config.output == "last_hidden":
            return _real(x, count)
        logits = self.head(x) if self.head is not None else linear(x, self.embed.weight)
        logits = scaled(logits, self.config.logit_scale)
        if self.config.logit_softcap is not None:
            wide = widened(logits) / self.config.logit_softcap
            logits = (wide.tanh() * self.config.logit_softcap).to(logits.dtype)
        return _real(logits, count) if last else logits


def _last(x: Float[Array, "B T D"], count: Integer[Array, "B"]) -> Float[Array, "B D"]:
    return x[torch.arange(x.shape[0], device=x.device), (count.clamp(min=1) - 1).to(x.device)]


def _real(x: Float[Array, "B W"], count: Integer[Array, "B"]) -> Float[Array, "B W"]:
    """x, with 0 for the rows that have no token."""
    return torch.where((count > 0).to(x.device)[:, None], x, 0)
